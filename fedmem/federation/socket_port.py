"""A `VaultPort` over the socket of the vault process, for the network-facing process.

Invariants
- It holds a token, public terms and shareable texts; no key, no private record, and no module of the vault.
- `approve` returns fields only after the vault process has confirmed, by their digest, that they are entered.
- A request that was not confirmed is never repeated. A connection that fails is closed; the next request for records,
  or for the approval of zeros, opens another.
- Training stops as soon as the vault process closes the connection: a record was erased, or the process ended. Over a
  new connection only zeros are then approved.

    port = SocketPort(runtime.folder, runtime.terms(), runtime.token())
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
        terms: plan and shapes that both processes agreed to.
        token: the run's token, 32 bytes.
        patience: seconds that the vault process has for each frame.

    Raises:
        NothingMatched: no vault process listens.
        Refused: the process that listens belongs to another user.
        VersionMismatch: the vault process holds other terms.
        PeerGone, BadFrame: the process that listens does not speak the protocol.
    """

    def __init__(self, folder: Path, terms: Terms, token: bytes, patience: float = PATIENCE) -> None:
        self._folder, self._terms, self._token, self._patience = folder, terms, token, patience
        self._schema = wire.anchor_reply(terms.shapes, terms.plan.clip)
        self._connection = self._connected()

    def admit(self, number: int) -> None:
        """Return if the vault process admits round `number`.

        Args:
            number: number of the round, from 1.

        Raises:
            BoundaryViolation: the plan has no such round.
            BudgetExceeded: the device's own budget or policy does not allow it.
            PeerGone, BadFrame, NothingMatched: the connection failed.
        """
        self._renew()
        with self._closed_on_failure():
            self._ask(protocol.ROUND, {protocol.ADMITTED: 0}, protocol.encode_round(number))

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

        Args:
            fields: the reply, an update in grid cells.
            number: number of the round; 0 for a reply to no round.

        Raises:
            BoundaryViolation: the fields are not what the schema and the plan allow.
            Busy: the vault process can enter no egress line now.
            PeerGone, BadFrame, NothingMatched: the connection failed.
        """
        parts = protocol.encode(fields, number, self._schema)
        if not any(array.any() for array in fields.arrays.values()):
            self._renew()  # an update must use the connection over which its records came
        with self._closed_on_failure():
            _, digest = self._ask(protocol.UPDATE, {protocol.RELEASED: protocol.DIGEST_BYTES}, *parts)
            if not hmac.compare_digest(bytes(digest), bytes.fromhex(fields.digest())):
                raise BadFrame("The vault process confirmed another update than was sent to it; nothing was sent.")
        return fields

    def watched(self, train: LocalTrain) -> LocalTrain:
        """Return `train` so that it ends with PeerGone as soon as the vault process closes the connection.

        It ends early in the main thread only. In another thread it runs to its end; approval then fails.

        Args:
            train: the local training of this device.
        """

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
        """Close the connection after PeerGone or BadFrame: later bytes on it have no meaning."""
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
        raise BadFrame("A shareable record is not valid UTF-8 text; it was not used.") from None


@contextlib.contextmanager
def _stopped_with(connection: Connection) -> Iterator[None]:
    """Raise PeerGone in the block as soon as the peer closes the connection, if the block runs in the main thread.

    In another thread the block runs to its end; approval then fails.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    has_ended = threading.Event()

    def stop(*_: object) -> None:
        if not has_ended.is_set():
            has_ended.set()
            raise PeerGone("The vault process closed the connection; training was stopped.")

    earlier_handler = signal.signal(signal.SIGUSR1, stop)
    watcher = threading.Thread(target=_watch, args=(connection, has_ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        has_ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, earlier_handler)


def _watch(connection: Connection, has_ended: threading.Event) -> None:
    main = threading.main_thread().ident
    while main is not None and not has_ended.is_set():
        if connection.closed_by_peer(TICK) and not has_ended.wait(TICK):
            # A real signal also interrupts a wait in the kernel. It is repeated, in case one came just before a wait.
            signal.pthread_kill(main, signal.SIGUSR1)
