"""Frames over a pair of pipe ends: how the two processes of a device talk (docs/design.md, §10).

Invariants
- A frame is a head (magic, protocol version, kind, length) and that many bytes; nothing is unpickled or parsed.
- A length is compared with the limit of its kind before anything is allocated for it.
- A wait for a peer that is in the middle of something ends after `patience` seconds; one that died is `PeerGone`.
- Another version is a VersionMismatch, other bytes are a `BadFrame`; after either the conversation is over.

| what comes | result |
|---|---|
| end of stream between two frames | None: the peer left |
| end of stream inside a frame, or silence there | PeerGone |
| a kind without a limit, or a length above it | BadFrame, nothing is read |

>>> there, here = os.pipe()
>>> Pipe(there, here).send(1, b"ab", b"c")
>>> Pipe(there, here).receive({1: 3})
(1, bytearray(b'abc'))
"""

import os
import select
import struct
import time
from collections.abc import Callable, Mapping

from fedmem.errors import BoundaryViolation, RemoteError, VersionMismatch

MAGIC, VERSION = b"fmvp", 1
PATIENCE = 60.0
TICK = 0.2  # seconds between two looks at other things while nobody speaks
HEAD = struct.Struct("<4sHHQ")
_PIECE = 1 << 20


class BadFrame(BoundaryViolation):
    """Bytes came through the pipe that no frame of this protocol has there."""


class PeerGone(RemoteError):
    """The other process of this device died, or is silent in the middle of something."""


class Pipe:
    """Two descriptors, one to read from and one to write to; they are closed with it.

    `patience`: seconds that a peer may be silent where it has something to say or to take.
    """

    def __init__(self, reading: int, writing: int, patience: float = PATIENCE) -> None:
        self._reading, self._writing, self._patience = reading, writing, patience
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)

    def send(self, kind: int, *parts: bytes) -> None:
        """Write one frame of this kind. Raises PeerGone."""
        length = sum(len(memoryview(part).cast("B")) for part in parts)
        for part in (HEAD.pack(MAGIC, VERSION, kind, length), *parts):
            self._write(memoryview(part).cast("B"))

    def receive(
        self, limits: Mapping[int, int], idle: Callable[[], None] | None = None
    ) -> tuple[int, bytearray] | None:
        """(kind, payload) of the next frame; None where the peer left.

        Args:
            limits: greatest length of each kind that may come now, in bytes.
            idle: called again and again until the frame begins, for as long as it takes; without it `patience` holds.

        Raises PeerGone, BadFrame, VersionMismatch, and what `idle` raises.
        """
        if idle is not None:
            while not _ready(self._reading, select.POLLIN, TICK):
                idle()
        head = self._read(HEAD.size, at_start=True)
        if head is None:
            return None
        magic, version, kind, length = HEAD.unpack(head)
        if magic != MAGIC:
            raise BadFrame("The other process of this device does not speak the vault's protocol. Start both anew.")
        if version != VERSION:
            raise VersionMismatch(
                f"The other process of this device speaks version {version} of the vault's protocol, this one "
                f"{VERSION}. Start both from one installation."
            )
        if kind not in limits or length > limits[kind]:
            raise BadFrame("A frame is of a kind or length that has no place here; it was not read.")
        payload = self._read(length)
        assert payload is not None
        return kind, payload

    def left(self) -> bool:
        """Whether the peer has closed its ends, by dying for instance; waits a moment."""
        return bool(_ready(self._reading, 0, TICK) & (select.POLLHUP | select.POLLERR))

    def close(self) -> None:
        """Close both ends; calling it twice is fine."""
        for handle in {self._reading, self._writing} - {-1}:
            os.close(handle)
        self._reading = self._writing = -1

    def _read(self, length: int, at_start: bool = False) -> bytearray | None:
        """Exactly so many bytes; None at an end of the stream where one may be."""
        data, got = bytearray(length), 0
        while got < length:
            self._wait(self._reading, select.POLLIN)
            try:
                read = os.readv(self._reading, [memoryview(data)[got : got + _PIECE]])
            except BlockingIOError:
                continue
            if read == 0 and at_start and got == 0:
                return None
            if read == 0:
                raise _gone()
            got += read
        return data

    def _write(self, data: memoryview) -> None:
        while data:
            self._wait(self._writing, select.POLLOUT)
            try:
                data = data[os.write(self._writing, data[:_PIECE]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise _gone() from None

    def _wait(self, handle: int, event: int) -> None:
        limit = time.monotonic() + self._patience
        while not _ready(handle, event, max(0.0, limit - time.monotonic())):
            if time.monotonic() >= limit:
                raise _gone()


def _ready(handle: int, event: int, seconds: float) -> int:
    """What `poll` says of a descriptor; 0 where nothing happened in time."""
    poll = select.poll()
    poll.register(handle, event)
    return next((found for _, found in poll.poll(seconds * 1000)), 0)


def _gone() -> PeerGone:
    return PeerGone("The other process of this device ended or fell silent; nothing was sent. Start both anew.")
