"""The network-facing process's end of the socket: a `VaultPort` of a device whose vault has a process of its own.

Invariants
- It holds a token, public terms and shareable texts; no key, no private record, and no module of the vault.
- `approve` returns fields only after the vault process has confirmed, by their digest, that they are entered.
- Nothing is sent again that was not confirmed: a connection that breaks is closed, and the next request opens another.
- Training stops as soon as the vault process closes the connection: a record was erased, or the process ended. Then
  only zeros may go over a new connection.

    port = SocketPort(runtime.folder, runtime.terms, runtime.token())
    device = Device(0, port, plan, shapes, port.watched(train))
"""

import contextlib
import hmac
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmem.federation import socket_protocol as protocol
from fedmem.federation import wire
from fedmem.federation.connection import PATIENCE, TICK, BadFrame, Connection, PeerGone, connect
from fedmem.federation.device import LocalTrain, TrainConfig
from fedmem.federation.terms import Terms
from fedmem.federation.wire import Fields


class SocketPort:
    """A `VaultPort` over a Unix domain socket.

    Args:
        folder: the runtime folder of the vault process.
        token: the run's token, 32 bytes.
        patience: seconds that the vault process has for each frame.

    Raises:
        NothingMatched: no vault process listens. Refused: another user's process does.
        VersionMismatch: the vault process holds other terms. PeerGone, BadFrame: it does not speak the protocol.
    """

    def __init__(self, folder: Path, terms: Terms, token: bytes, patience: float = PATIENCE) -> None:
        self._folder, self._terms, self._token, self._patience = folder, terms, token, patience
        self._schema = wire.anchor_reply(terms.shapes, terms.plan.clip)
        self._connection = self._connected()

    def shareable(self) -> Sequence[str]:
        """Return the texts of shareable records. Raises Busy, PeerGone, BadFrame, NothingMatched."""
        texts, limits = [], {protocol.TEXT: protocol.MAX_TEXT, protocol.END: 0}
        self._renew()
        with self._closed_on_failure():
            kind, payload = self._ask(protocol.RECORDS, limits)
            while kind == protocol.TEXT:
                texts.append(_text(payload))
                kind, payload = _next(self._connection, limits)
        return tuple(texts)

    def approve(self, fields: Fields, number: int) -> Fields:
        """Return `fields` once the vault process has confirmed by their digest that they are entered.

        Raises BoundaryViolation where the gate refuses them, Busy where it can enter no line now, PeerGone, BadFrame,
        NothingMatched.
        """
        parts = protocol.encode(fields, number, self._schema)
        if not any(array.any() for array in fields.arrays.values()):
            self._renew()  # an update has to go over the connection that got its records
        with self._closed_on_failure():
            _, digest = self._ask(protocol.UPDATE, {protocol.RELEASED: protocol.DIGEST_BYTES}, *parts)
            if not hmac.compare_digest(bytes(digest), bytes.fromhex(fields.digest())):
                raise BadFrame("The vault process released something else than was asked; nothing was sent.")
        return fields

    def watched(self, train: LocalTrain) -> LocalTrain:
        """Return `train`, stopped with PeerGone as soon as the vault process closes the connection."""

        def watched_train(params: wire.Params, config: TrainConfig) -> wire.Params:
            with _stopped_with(self._connection):
                return train(params, config)

        return watched_train

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _connected(self) -> Connection:
        connection = connect(self._folder, self._patience)
        try:
            connection.send(protocol.HELLO, self._token, bytes.fromhex(self._terms.digest()))
            kind, payload = _next(connection, {protocol.WELCOME: 0, protocol.REFUSED: 1})
            if kind == protocol.REFUSED:
                raise protocol.refusal(payload)
        except BaseException:
            connection.close()
            raise
        return connection

    def _renew(self) -> None:
        if self._connection.is_closed():
            self._connection.close()
            self._connection = self._connected()

    def _ask(self, kind: int, limits: dict[int, int], *parts: bytes) -> tuple[int, bytearray]:
        self._connection.send(kind, *parts)
        answer, payload = _next(self._connection, {**limits, protocol.REFUSED: 1})
        if answer == protocol.REFUSED:
            raise protocol.refusal(payload)
        return answer, payload

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        """Close the connection where it breaks: what comes next on it has no meaning."""
        try:
            yield
        except (PeerGone, BadFrame):
            self._connection.close()
            raise


def _next(connection: Connection, limits: dict[int, int]) -> tuple[int, bytearray]:
    frame = connection.receive(limits)
    if frame is None:
        raise PeerGone("The vault process closed the connection; nothing was sent.")
    return frame


def _text(payload: bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise BadFrame("A shareable record came as other bytes than UTF-8 text; it was not used.") from None


@contextlib.contextmanager
def _stopped_with(connection: Connection) -> Iterator[None]:
    """Raise PeerGone in the block, which runs in the main thread, as soon as the peer closes the connection.

    In another thread the block runs to its end; approval then fails all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def stop(*_: object) -> None:
        if not over.is_set():
            over.set()
            raise PeerGone("The vault process closed the connection; training was stopped.")

    before = signal.signal(signal.SIGUSR1, stop)
    watcher = threading.Thread(target=_watch, args=(connection, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


def _watch(connection: Connection, over: threading.Event) -> None:
    main = threading.main_thread().ident
    while main is not None and not over.is_set():
        if connection.closed_by_peer(TICK) and not over.wait(TICK):
            # A real signal, which also ends a wait inside the kernel; again, should one come just before the wait.
            signal.pthread_kill(main, signal.SIGUSR1)
