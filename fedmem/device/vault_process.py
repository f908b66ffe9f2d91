"""The server of the vault process: it answers network-facing processes over a Unix socket (docs/design.md, §10).

Invariants
- Keys and private records stay in this process. It sends out only texts that policy and floor policy place as shared
  now.
- A round that the device's account does not grant gets no update (`fedmem.device.account`).
- An answer is released after its egress line is durable. If the line cannot be entered, the update is refused.
- A connection is served only if the peer has the same user id (SO_PEERCRED) and the run's token, compared in constant
  time.
- A peer that is silent, sends invalid frames or opens too many connections affects only its own connections. Each has a
  thread and a deadline; of too many connections, the oldest without a token is closed.
- The vault is open for reading only. Learning, adding and erasing go on in other processes and do not change what
  leaves the device (I1).
- An erasure of a record that was sent out closes the connections that got it.

Peer credentials do not separate programs of one user. Received code that runs under the same user can read all files of
that user.

    with listening(runtime, vault) as server:
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

from fedmem.device.account import Account
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
GREETING = 5.0  # seconds in which a peer has to send the token
TRAINING = 3600.0  # seconds that a peer may train between two requests; a deployed device uses the round's deadline


class Served(Protocol):
    """The methods of the vault that the server uses; see `fedmem.device.served_vault.ServedVault`."""

    def account(self) -> Account: ...
    def shareable(self) -> tuple[list[str], frozenset[str]]: ...
    def enter(self, entry: EgressEntry) -> object: ...
    def settle(self) -> None: ...
    def renew(self) -> int: ...
    def holds(self, ids: frozenset[str]) -> bool: ...


class PeerSession:
    """The state of one connection.

    Args:
        connection: the connection, open.

    Attributes:
        connection: the connection.
        record_ids: ids of the records that were sent over it.
        has_token: True if the peer has sent the token.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection, self.record_ids, self.has_token = connection, frozenset[str](), False


class Server:
    """The server of the socket; each connection is answered in a thread of its own.

    Args:
        listener: a listening Unix socket.
        terms: plan and shapes of the run.
        token: the run's token, 32 bytes.
        vault: gives the records and enters the egress lines.
        greeting, training, patience: seconds for the first frame, between two frames, and for one frame.

    Attributes:
        released: number of answers released so far.
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
        self._gate = Gate(terms, vault.enter, vault.account())
        self._greeting, self._training, self._patience = greeting, training, patience
        self._sessions: list[PeerSession] = []
        self._opening_count = vault.renew()
        self._lock = threading.Lock()
        self.released = 0

    def serve(self, until: Callable[[], bool]) -> None:
        """Accept and answer connections until a function returns True.

        Args:
            until: called several times a second; ends the serving when it returns True.

        Raises:
            FedmemError: any error, except Busy, of opening the vault again after an erasure.
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
        except OSError:  # the peer has closed, or this process has no free descriptor
            return
        session = PeerSession(Connection(end, self._greeting))
        if not self._make_room():
            session.connection.close()
            return
        with self._lock:
            self._sessions.append(session)
        threading.Thread(target=self._answer, args=(session,), daemon=True).start()

    def _make_room(self) -> bool:
        """Return True if one more connection may be served. If need be, close the oldest one without a token."""
        with self._lock:
            if len(self._sessions) < MOST_CONNECTIONS:
                return True
            without_token = [session for session in self._sessions if not session.has_token]
            if without_token:
                without_token[0].connection.shut()
                self._sessions.remove(without_token[0])
            return bool(without_token)

    def _answer(self, session: PeerSession) -> None:
        try:
            require_same_user(session.connection)
            if self._accept_greeting(session):
                session.connection.allow(self._patience)
                self._answer_requests(session)
        except FedmemError as error:
            _log.warning("A connection was closed: %s", error)
        finally:
            session.connection.close()
            with self._lock, contextlib.suppress(ValueError):
                self._sessions.remove(session)

    def _accept_greeting(self, session: PeerSession) -> bool:
        """Return True if the peer sent the token and the digest of these terms, False if it closed before."""
        frame = session.connection.receive({protocol.HELLO: protocol.TOKEN_BYTES + protocol.DIGEST_BYTES})
        if frame is None:
            return False
        token, digest = bytes(frame[1][: protocol.TOKEN_BYTES]), bytes(frame[1][protocol.TOKEN_BYTES :])
        if not hmac.compare_digest(token, self._token):
            raise Refused("A connection did not send the run's token; it was refused.")
        session.has_token = True
        if digest != self._digest:
            session.connection.send(protocol.REFUSED, protocol.TERMS)
            raise VersionMismatch(
                "The network-facing process holds other terms. Start both processes from one terms file."
            )
        session.connection.send(protocol.WELCOME)
        return True

    def _answer_requests(self, session: PeerSession) -> None:
        update_bytes = protocol.update_bytes(self._gate.schema)
        limits = {protocol.RECORDS: 0, protocol.ROUND: protocol.ROUND_BYTES, protocol.UPDATE: update_bytes}
        while session.connection.wait(self._training) and (frame := session.connection.receive(limits)) is not None:
            if frame[0] == protocol.RECORDS:
                self._send_records(session)
            elif frame[0] == protocol.ROUND:
                self._admit(session, protocol.decode_round(frame[1]))
            else:
                self._release_update(session, frame[1])

    def _admit(self, session: PeerSession, number: int) -> None:
        try:
            self._gate.admit(number)
        except FedmemError as error:
            self._refuse(session, error)
            return
        session.connection.send(protocol.ADMITTED)

    def _send_records(self, session: PeerSession) -> None:
        try:
            texts, session.record_ids = self._vault.shareable()
        except FedmemError as error:
            self._refuse(session, error)
            return
        for text in texts:
            session.connection.send(protocol.TEXT, text.encode())
        session.connection.send(protocol.END)

    def _release_update(self, session: PeerSession, payload: bytearray) -> None:
        fields, number = protocol.decode(payload, self._gate.schema)
        try:
            if session.record_ids and not self._vault.holds(session.record_ids):
                session.connection.shut()  # the peer may send zeros over another connection
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
        session.connection.send(protocol.REFUSED, _reason(error))

    def _close_erased(self) -> None:
        """Close the connections that got a record which was erased later, once the vault is open again."""
        opening_count = self._vault.renew()
        if opening_count == self._opening_count:
            return
        with self._lock:
            sessions = [session for session in self._sessions if session.record_ids]
        try:
            for session in sessions:
                if not self._vault.holds(session.record_ids):
                    session.connection.shut()
            self._opening_count = opening_count
        except Busy:  # another erasure has begun; the next call comes after it
            return


def _reason(error: FedmemError) -> bytes:
    if isinstance(error, BoundaryViolation):
        return protocol.BOUNDARY
    return protocol.BUDGET if isinstance(error, Refused) else protocol.NOT_NOW


@contextlib.contextmanager
def listening(runtime: Runtime, vault: Served, **seconds: float) -> Iterator[Server]:
    """Listen in the runtime folder until the block ends.

    Args:
        seconds: `greeting`, `training` and `patience` of the `Server`.

    Raises:
        StorageError: the socket cannot be made.
        Refused: others may enter the folder.
    """
    with storage_errors("listen on the device's socket"):
        listener = listen(runtime.folder, MOST_CONNECTIONS)
    with contextlib.closing(listener):  # also where a damaged account stops the server before it serves
        server = Server(listener, runtime.terms(), runtime.token(), vault, **seconds)
        try:
            yield server
        finally:
            server.close()
