"""A connection of the two processes of a device: frames over one Unix domain socket.

Invariants
- A frame is a head (magic, protocol version, kind, length) and as many bytes as `length`; nothing is unpickled or
  parsed.
- The length is compared with the limit of the frame's kind before any memory is allocated for it.
- A frame is read or written whole within `patience` seconds, however slowly its bytes arrive.
- Another version is a VersionMismatch, other bytes are a `BadFrame`. After either error the connection is unusable.
- The peer runs under this process's user id, as the kernel reports it (SO_PEERCRED), or the connection is refused.
- A socket lies in a folder of mode 0700. It is opened through a descriptor of the folder, so its path may have any
  length.

| what the peer does | result of `receive` |
|---|---|
| it closes between two frames | None |
| it closes inside a frame, or takes too long for it | PeerGone |
| it sends a kind without a limit, or a length above the limit | BadFrame; the payload is not read |

>>> end, peer = map(Connection, socket.socketpair())
>>> end.send(1, b"ab", b"c")
>>> peer.receive({1: 3})
(1, bytearray(b'abc'))
>>> end.close(), peer.is_closed(), peer.close()
(None, True, None)
"""

import contextlib
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedmem.errors import BoundaryViolation, NothingMatched, Refused, RemoteError, VersionMismatch

SOCKET = "socket"
MAGIC, VERSION = b"fmvp", 1
PATIENCE = 60.0  # seconds in which a frame has to be read or written whole
TICK = 0.2  # seconds between two checks of other conditions while no frame arrives
HEAD = struct.Struct("<4sHHQ")
_PIECE = 1 << 20
_CREDENTIALS = struct.Struct("3i")  # process id, user id, group id


class BadFrame(BoundaryViolation):
    """The peer sent bytes that are no frame which this protocol allows at this point."""


class PeerGone(RemoteError):
    """The other process of this device ended, closed the connection, or took too long for one frame."""


class Connection:
    """One end of a connected Unix domain socket.

    Args:
        end: the socket. The connection owns it, and closes it in `close`.
        patience: seconds in which a frame has to be read or written whole.
    """

    def __init__(self, end: socket.socket, patience: float = PATIENCE) -> None:
        self._end, self._patience, self._deadline = end, patience, 0.0
        end.setblocking(False)

    def allow(self, seconds: float) -> None:
        """Set the seconds in which a frame has to be read or written whole.

        Args:
            seconds: the patience for all later frames.
        """
        self._patience = seconds

    def send(self, kind: int, *parts: bytes) -> None:
        """Write one frame of `kind`; its payload is `parts`, joined.

        Args:
            kind: number of the frame's kind, 0 to 65535.
            parts: pieces of the payload, in their order.

        Raises:
            PeerGone: the peer closed, or took too long.
        """
        views = [memoryview(part).cast("B") for part in parts]
        head = HEAD.pack(MAGIC, VERSION, kind, sum(len(view) for view in views))
        with self._timed():
            for view in (memoryview(head), *views):
                self._write(view)

    def receive(self, limits: Mapping[int, int]) -> tuple[int, bytearray] | None:
        """Return (kind, payload) of the next frame, or None where the peer closed between two frames.

        Args:
            limits: kind -> greatest length in bytes, for each kind that is allowed now.

        Raises:
            PeerGone: the peer closed inside the frame, or took too long.
            BadFrame: the bytes are no frame, or its kind or length is not allowed.
            VersionMismatch: the peer uses another version of the protocol.
        """
        with self._timed():
            head = self._read(HEAD.size, may_end=True)
            if head is None:
                return None
            magic, version, kind, length = HEAD.unpack(head)
            if magic != MAGIC:
                raise BadFrame("The other process does not speak fedmem's protocol. Start both again.")
            if version != VERSION:
                raise VersionMismatch(
                    f"The other process speaks version {version} of fedmem's protocol, this one "
                    f"{VERSION}. Start both from one installation."
                )
            if kind not in limits or length > limits[kind]:
                raise BadFrame("A frame has a kind or a length that is not allowed here; it was not read.")
            payload = self._read(length)
            assert payload is not None
            return kind, payload

    def wait(self, seconds: float) -> bool:
        """Return True as soon as the peer has sent something or closed, False after `seconds`.

        Args:
            seconds: the longest time to wait; 0 or less only looks.
        """
        return bool(select.select([self._end], [], [], max(0.0, seconds))[0])

    def closed_by_peer(self, seconds: float) -> bool:
        """Return True as soon as the peer has closed, False after `seconds`. Nothing that it sent is read.

        Args:
            seconds: the longest time to wait; 0 only looks.
        """
        poll = select.poll()
        poll.register(self._end, select.POLLRDHUP)
        return bool(poll.poll(seconds * 1000))

    def is_closed(self) -> bool:
        """Return True if either side has closed."""
        return self._end.fileno() < 0 or self.closed_by_peer(0)

    def peer_user(self) -> int:
        """Return the user id of the process that made this connection, as the kernel recorded it."""
        data = self._end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(data)[1])

    def shut(self) -> None:
        """End the connection for both sides, and wake a thread that waits on it."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._end.close()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Start the time of one frame, and raise PeerGone for an error of the socket."""
        self._deadline = time.monotonic() + self._patience
        try:
            yield
        except (OSError, ValueError):  # reset by the peer, or closed by another thread of this process
            raise PeerGone("The other process of this device closed its connection; nothing was sent.") from None

    def _read(self, length: int, may_end: bool = False) -> bytearray | None:
        """Return exactly `length` bytes; None at an end of the stream before the first, where `may_end`."""
        data, count = bytearray(length), 0
        while count < length:
            self._wait(select.POLLIN)
            try:
                size = self._end.recv_into(memoryview(data)[count : count + _PIECE])
            except BlockingIOError:
                continue
            if size == 0 and may_end and count == 0:
                return None
            if size == 0:
                raise PeerGone("The other process of this device ended inside a frame; nothing was sent.")
            count += size
        return data

    def _write(self, data: memoryview) -> None:
        while data:
            self._wait(select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                data = data[self._end.send(data[:_PIECE]) :]

    def _wait(self, event: int) -> None:
        poll = select.poll()
        poll.register(self._end, event)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise PeerGone("The other process of this device took too long for one frame; nothing was sent.")


def require_same_user(connection: Connection) -> None:
    """Check that the peer runs under this process's user id.

    Args:
        connection: a connection over a Unix domain socket.

    Raises:
        Refused: the peer runs under another user id.
    """
    if connection.peer_user() != os.geteuid():
        raise Refused("A process of another user connected to this device's socket; it was refused.")


def connect(folder: Path, patience: float = PATIENCE) -> Connection:
    """Connect to the vault process that listens in `folder`.

    Args:
        folder: the runtime folder of the vault process.
        patience: seconds to wait for the vault process to accept, and for each frame later.

    Raises:
        NothingMatched: no vault process listens there.
        Refused: the folder or the peer belongs to another user.
    """
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _opened(folder) as handle:
            _connect(end, _address(handle), time.monotonic() + patience)
    except OSError:
        end.close()
        raise NothingMatched("No vault process listens for this device. Start `fedmem client run`.") from None
    except BaseException:
        end.close()
        raise
    connection = Connection(end, patience)
    try:
        require_same_user(connection)
    except Refused:
        connection.close()
        raise
    return connection


def _connect(end: socket.socket, address: str, deadline: float) -> None:
    end.setblocking(False)
    while True:
        try:
            return end.connect(address)
        except BlockingIOError:  # the vault process has not yet accepted the earlier connections
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def listen(folder: Path, backlog: int) -> socket.socket:
    """Return a socket that listens in `folder`, and replace a socket that an ended process left there.

    Args:
        folder: the runtime folder; mode 0700, owned by this user.
        backlog: the most connections that wait to be accepted.

    Raises:
        Refused: others may enter the folder.
        OSError: the socket cannot be made.
    """
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _opened(folder) as handle:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(SOCKET, dir_fd=handle)
            end.bind(_address(handle))
        end.listen(backlog)
    except BaseException:
        end.close()
        raise
    return end


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise Refused(f"Others may enter {folder}: run `chmod 700` on it, or remove it.")
        yield handle
    finally:
        os.close(handle)


def _address(folder: int) -> str:
    # A socket's path has at most 107 bytes; the path through the descriptor is short wherever the folder lies.
    return f"/proc/self/fd/{folder}/{SOCKET}"
