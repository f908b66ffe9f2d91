"""A connection of the two processes of a device: frames over one Unix domain socket.

Invariants
- Frames are those of `fedmem.federation.pipe`: a length is compared with its limit before anything is allocated.
- A frame is read or written whole within `patience` seconds, however slowly bytes come.
- The peer runs under this process's user id, by the kernel's word (SO_PEERCRED), or the connection is refused.
- A socket lies in a folder of mode 0700 and is reached through a descriptor of it: its path may be of any length.

>>> one, other = map(Connection, socket.socketpair())
>>> one.send(1, b"ab", b"c")
>>> other.receive({1: 3})
(1, bytearray(b'abc'))
>>> one.close(), other.is_closed(), other.close()
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

from fedmem.errors import NothingMatched, Refused
from fedmem.federation.pipe import PATIENCE, PeerGone, Pipe

SOCKET = "socket"
_CREDENTIALS = struct.Struct("3i")  # process id, user id, group id


class Connection(Pipe):
    """One end of a connected Unix domain socket; closed with it.

    Args:
        end: the socket; it belongs to the connection from now on.
        patience: seconds in which a frame has to be read or written whole.
    """

    def __init__(self, end: socket.socket, patience: float = PATIENCE) -> None:
        super().__init__(end.fileno(), end.fileno(), patience)
        self._end, self._deadline = end, 0.0

    def allow(self, seconds: float) -> None:
        """Set the seconds in which a frame has to be read or written whole."""
        self._patience = seconds

    def send(self, kind: int, *parts: bytes) -> None:
        """Write one frame. Raises PeerGone."""
        with self._timed():
            super().send(kind, *parts)

    def receive(self, limits: Mapping[int, int]) -> tuple[int, bytearray] | None:
        """Return (kind, payload) of the next frame, or None where the peer closed. Raises as `Pipe.receive`."""
        with self._timed():
            return super().receive(limits)

    def wait(self, seconds: float) -> bool:
        """Return True as soon as the peer has sent something or closed, False after `seconds`."""
        return bool(select.select([self._end], [], [], max(0.0, seconds))[0])

    def closed_by_peer(self, seconds: float) -> bool:
        """Return True as soon as the peer has closed, False after `seconds`; what it sent stays unread."""
        poll = select.poll()
        poll.register(self._end, select.POLLRDHUP)
        return bool(poll.poll(seconds * 1000))

    def is_closed(self) -> bool:
        """Return True if either side has closed."""
        return self._end.fileno() < 0 or self.closed_by_peer(0)

    def peer_user(self) -> int:
        """Return the user id of the process that made this connection, as the kernel noted it."""
        data = self._end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(data)[1])

    def shut(self) -> None:
        """End the connection for both sides; a thread that waits on it wakes."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; calling it twice is fine."""
        self._end.close()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        self._deadline = time.monotonic() + self._patience
        try:
            yield
        except (OSError, ValueError):  # reset by the peer, or closed by another thread of this process
            raise PeerGone("The other process of this device closed its connection; nothing was sent.") from None

    def _wait(self, handle: int, event: int) -> None:
        poll = select.poll()
        poll.register(handle, event)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise PeerGone("The other process of this device took too long for one frame; nothing was sent.")


def require_same_user(connection: Connection) -> None:
    """Raise Refused where the peer runs under another user id."""
    if connection.peer_user() != os.geteuid():
        raise Refused("A process of another user connected to this device's socket; it was refused.")


def connect(folder: Path, patience: float = PATIENCE) -> Connection:
    """Connect to the vault process that listens in `folder`.

    Raises NothingMatched where none listens, Refused where the folder or the peer belongs to another user.
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


def _connect(end: socket.socket, address: str, limit: float) -> None:
    end.setblocking(False)
    while True:
        try:
            return end.connect(address)
        except BlockingIOError:  # the vault process has not yet accepted those who came before
            if time.monotonic() > limit:
                raise
            time.sleep(0.01)


def listen(folder: Path, backlog: int) -> socket.socket:
    """Return a socket that listens in `folder`, in place of what an ended process left there.

    Raises Refused where others may enter the folder, OSError where it cannot be made.
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
    # A socket's path has at most 107 bytes; the way through the descriptor is short wherever the folder lies.
    return f"/proc/self/fd/{folder}/{SOCKET}"
