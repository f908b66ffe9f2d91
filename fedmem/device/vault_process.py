"""The vault process of a device: it holds the vault and answers network-facing processes over a Unix socket (§10).

Invariants
- Keys and private records stay here. What is given out are texts that policy and floor policy place as shared now.
- An answer is released after its egress line is durable; where that fails, the update is refused.
- A connection is served only for the same user id (SO_PEERCRED) and the run's token, compared in constant time.
- A peer that is silent, sends junk or floods costs its own connection: each has a thread and a deadline, and of too
  many the oldest without a token is closed.
- The vault is open for reading only: learning, adding and erasing go on beside it and change nothing that leaves (I1).
  An erasure that takes a record which was given out closes the connections that got it.

Peer credentials do not separate programs of one user. Received code under the same user may read what the user can.

    with listening(runtime, terms, vault) as server:
        server.serve(until=stopped)
"""

import contextlib
import hmac
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from fedmem.device.gate import Gate
from fedmem.errors import BoundaryViolation, Busy, FedmemError, Refused, VersionMismatch
from fedmem.federation import socket_protocol as protocol
from fedmem.federation.connection import PATIENCE, TICK, Connection, listen, require_same_user
from fedmem.federation.runtime import Runtime
from fedmem.federation.terms import Terms
from fedmem.storage.files import storage_errors
from fedmem.vault.store.egress_entry import EgressEntry

_log = logging.getLogger("fedmem.device")

MOST_CONNECTIONS = 32
GREETING = 5.0  # seconds in which a peer has to show the token
TRAINING = 3600.0  # seconds that a peer may train between two requests; a deployed device takes the round's deadline


class Served(Protocol):
    """All requests that the server makes to the vault; see `fedmem.device.served_vault.ServedVault`."""

    def shareable(self) -> tuple[list[str], frozenset[str]]: ...
    def enter(self, entry: EgressEntry) -> object: ...
    def settle(self) -> None: ...
    def renew(self) -> int: ...
    def holds(self, ids: frozenset[str]) -> bool: ...


class PeerSession:
    """One connection, the ids of the records that went out over it, and whether it has shown the token."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.record_ids, self.has_token = connection, frozenset[str](), False


class Server:
    """Answers connections, each in a thread of its own.

    Args:
        listener: a listening Unix socket.
        token: the run's token, 32 bytes.
        greeting, training, patience: seconds for the first frame, between two frames, and for one frame.
    """

    def __init__(
        self,
        listener: socket.socket,
        terms: Terms,
        token: bytes,
        vault: Served,
        *,
        greeting: float = GREETING,
        training: float = TRAINING,
        patience: float = PATIENCE,
    ) -> None:
        self._listener, self._vault = listener, vault
        self._token, self._digest = token, bytes.fromhex(terms.digest())
        self._gate = Gate(terms, vault.enter)
        self._greeting, self._training, self._patience = greeting, training, patience
        self._sessions: list[PeerSession] = []
        self._opening = vault.renew()
        self._lock = threading.Lock()
        self.released = 0

    def serve(self, until: Callable[[], bool]) -> None:
        """Accept and answer connections until `until()` is true; it is asked several times a second.

        Raises what opening the vault anew raises after an erasure, except that it is busy.
        """
        while not until():
            if select.select([self._listener], [], [], TICK)[0]:
                self._accept()
            self._close_erased()

    def close(self) -> None:
        """Close the socket and all connections."""
        self._listener.close()
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.connection.shut()

    def _accept(self) -> None:
        try:
            end, _ = self._listener.accept()
        except OSError:  # the peer has gone, or this process has no descriptor left for it
            return
        session = PeerSession(Connection(end, self._greeting))
        if not self._has_room():
            session.connection.close()
            return
        with self._lock:
            self._sessions.append(session)
        threading.Thread(target=self._answer, args=(session,), daemon=True).start()

    def _has_room(self) -> bool:
        """Return True if one more connection may be served; closes the oldest without a token if need be."""
        with self._lock:
            if len(self._sessions) < MOST_CONNECTIONS:
                return True
            strangers = [session for session in self._sessions if not session.has_token]
            if strangers:
                strangers[0].connection.shut()
                self._sessions.remove(strangers[0])
            return bool(strangers)

    def _answer(self, session: PeerSession) -> None:
        try:
            require_same_user(session.connection)
            if self._greeted(session):
                session.connection.allow(self._patience)
                self._converse(session)
        except FedmemError as error:
            _log.warning("A connection was closed: %s", error)
        finally:
            session.connection.close()
            with self._lock, contextlib.suppress(ValueError):
                self._sessions.remove(session)

    def _greeted(self, session: PeerSession) -> bool:
        frame = session.connection.receive({protocol.HELLO: protocol.TOKEN_BYTES + protocol.DIGEST_BYTES})
        if frame is None:
            return False
        token, digest = bytes(frame[1][: protocol.TOKEN_BYTES]), bytes(frame[1][protocol.TOKEN_BYTES :])
        if not hmac.compare_digest(token, self._token):
            raise Refused("A connection did not show the run's token; it was refused.")
        session.has_token = True
        if digest != self._digest:
            session.connection.send(protocol.REFUSED, protocol.TERMS)
            raise VersionMismatch("The network-facing process holds other terms. Start both from one file.")
        session.connection.send(protocol.WELCOME)
        return True

    def _converse(self, session: PeerSession) -> None:
        limits = {protocol.RECORDS: 0, protocol.UPDATE: protocol.update_bytes(self._gate.schema)}
        while session.connection.wait(self._training) and (frame := session.connection.receive(limits)) is not None:
            if frame[0] == protocol.RECORDS:
                self._give(session)
            else:
                self._judge(session, frame[1])

    def _give(self, session: PeerSession) -> None:
        try:
            texts, session.record_ids = self._vault.shareable()
        except FedmemError as error:
            self._refuse(session, error)
            return
        for text in texts:
            session.connection.send(protocol.TEXT, text.encode())
        session.connection.send(protocol.END)

    def _judge(self, session: PeerSession, payload: bytearray) -> None:
        fields, number = protocol.decode(payload, self._gate.schema)
        try:
            if session.record_ids and not self._vault.holds(session.record_ids):
                session.connection.shut()  # zeros may come over another connection
                return
            self._gate.release(fields, number)
        except FedmemError as error:
            self._refuse(session, error)
            return
        with self._lock:
            self.released += 1
        session.connection.send(protocol.RELEASED, bytes.fromhex(fields.digest()))
        self._vault.settle()

    def _refuse(self, session: PeerSession, error: FedmemError) -> None:
        _log.error("A request was refused: %s", error)
        reason = protocol.BOUNDARY if isinstance(error, BoundaryViolation) else protocol.NOT_NOW
        session.connection.send(protocol.REFUSED, reason)

    def _close_erased(self) -> None:
        """Close the connections that got a record which was erased since, once the vault is open again."""
        opening = self._vault.renew()
        if opening == self._opening:
            return
        with self._lock:
            sessions = [session for session in self._sessions if session.record_ids]
        try:
            for session in sessions:
                if not self._vault.holds(session.record_ids):
                    session.connection.shut()
            self._opening = opening
        except Busy:  # another erasure has begun; the next look comes after it
            return


@contextlib.contextmanager
def listening(runtime: Runtime, vault: Served, **seconds: float) -> Iterator[Server]:
    """Listen in the runtime folder for as long as the block lasts. Raises StorageError, Refused."""
    with storage_errors("listen on the device's socket"):
        listener = listen(runtime.folder, MOST_CONNECTIONS)
    server = Server(listener, runtime.terms(), runtime.token(), vault, **seconds)
    try:
        yield server
    finally:
        server.close()
