"""The Flower process's end of the pipe: the port of a device whose vault lives in a process of its own.

Invariants
- It holds two descriptors, public terms and shareable texts; no key, no private record, and no name of a vault.
- `approve` returns fields only after the vault process has said, by their digest, that they are entered.
- Without the vault process nothing leaves: its loss is `VaultLost`, which ends this process. It is no `Exception`,
  so that no handler answers in the vault's place, not even with zeros.

    port = connect(Terms(plan, shapes))      # in a process that the vault process started
    device = Device(0, port, plan, shapes, train(port.shareable()))
"""

import contextlib
import hmac
import logging
import os
import threading
from collections.abc import Iterator, Sequence

from fedmem.errors import FedmemError, Refused, RemoteError
from fedmem.federation import dialogue, wire
from fedmem.federation.gate import Terms
from fedmem.federation.pipe import PATIENCE, BadFrame, PeerGone, Pipe
from fedmem.federation.wire import Fields

_log = logging.getLogger("fedmem.device")

ENDS = "FEDMEM_VAULT_PIPE"
"""Environment variable with the numbers of the two descriptors: public, and worth nothing to another process."""


class VaultLost(SystemExit):
    """The vault process is gone, or does not speak the protocol: this process ends, with the code of RemoteError."""

    def __init__(self, why: FedmemError) -> None:
        super().__init__(RemoteError.exit_code)
        self.why = why


class PipePort:
    """A `VaultPort` over a pipe. Raises VersionMismatch where the vault process holds other terms."""

    def __init__(self, pipe: Pipe, terms: Terms) -> None:
        self._pipe = pipe
        self._schema = wire.anchor_reply(terms.shapes, terms.plan.clip)
        self._ask(dialogue.HELLO, {dialogue.WELCOME: 0}, bytes.fromhex(terms.digest()))

    def shareable(self) -> Sequence[str]:
        """Texts of records that the vault process placed as shareable, at its start. Raises VaultLost."""
        texts, limits = [], {dialogue.TEXT: dialogue.MAX_TEXT, dialogue.END: 0}
        kind, payload = self._ask(dialogue.RECORDS, limits)
        while kind == dialogue.TEXT:
            with _or_lost():
                texts.append(_text(payload))
            kind, payload = self._next(limits)
        return tuple(texts)

    def approve(self, fields: Fields, number: int) -> Fields:
        """`fields`, once the vault process has released them. Raises BoundaryViolation or VaultLost."""
        parts = dialogue.encode(fields, number, self._schema)
        _, said = self._ask(dialogue.UPDATE, {dialogue.RELEASED: dialogue.DIGEST_BYTES}, *parts)
        with _or_lost():
            if not hmac.compare_digest(bytes(said), bytes.fromhex(fields.digest())):
                raise BadFrame("The vault process released something else than was asked; nothing was sent.")
        return fields

    def _ask(self, kind: int, limits: dict[int, int], *parts: bytes) -> tuple[int, bytearray]:
        with _or_lost():
            self._pipe.send(kind, *parts)
        kind, payload = self._next({**limits, dialogue.REFUSED: 1})
        if kind == dialogue.REFUSED:
            raise dialogue.refusal(payload)
        return kind, payload

    def _next(self, limits: dict[int, int]) -> tuple[int, bytearray]:
        with _or_lost():
            frame = self._pipe.receive(limits)
            if frame is None:
                raise PeerGone("The vault process ended; nothing was sent. Start the device anew.")
        return frame


@contextlib.contextmanager
def _or_lost() -> Iterator[None]:
    try:
        yield
    except FedmemError as error:
        _log.error("This process ends: %s", error)
        raise VaultLost(error) from None


def _text(payload: bytearray) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise BadFrame("A shareable record came as other bytes than UTF-8 text; it was not used.") from None


def connect(terms: Terms, patience: float = PATIENCE) -> PipePort:
    """The port of this process, which a vault process started; this process ends with that one.

    Raises Refused where it was started otherwise, VersionMismatch where the vault process holds other terms.
    """
    try:
        reading, writing = map(int, os.environ.pop(ENDS, "").split(","))
        for handle in (reading, writing):
            os.set_inheritable(handle, False)
    except (ValueError, OSError):
        raise Refused("This process was not started by a vault process, so it has no vault to ask.") from None
    pipe = Pipe(reading, writing, patience)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    return PipePort(pipe, terms)


def _end_with(pipe: Pipe) -> None:
    """End this process soon after the vault process: a training that goes on would train for nobody."""
    while not pipe.left():
        pass
    _log.error("The vault process ended, and this one with it; nothing more is sent.")
    os._exit(RemoteError.exit_code)
