"""Safe use of the standard streams of a command, also if they are closed, full or broken.

Invariants
- A character that the stream's encoding lacks is written as a backslash escape, and is no error.
- After a failed write, the stream is redirected to the null device. The interpreter's last flush then changes no exit
  code and prints nothing.

    prepare()
    write(sys.stdout, "text")
"""

import contextlib
import errno
import io
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Make the standard streams safe. Call it before anything else opens a file."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # As glibc does for setuid programs: a vault's file must not get number 1, because libraries print to it. The modes
    # are opposite to the usual ones, so that a descriptor that was closed still refuses data.
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)


def is_terminal(stream: TextIO | None) -> bool:
    """Return True if the stream is open and is a terminal.

    Args:
        stream: The stream; None if the process was started without it.
    """
    return stream is not None and not stream.closed and stream.isatty()


def write(stream: TextIO | None, text: str) -> None:
    """Write and flush a text.

    Args:
        stream: The stream; None if the process was started without it.
        text: The text.

    Raises:
        OSError: The text was not written, also because the stream is closed.
    """
    if stream is None or stream.closed:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    try:
        _write_all(stream, text)
        stream.flush()
    except OSError:
        silence(stream)
        raise


def _write_all(stream: TextIO, text: str) -> None:
    if not isinstance(stream, io.TextIOWrapper):
        stream.write(text)
        return
    stream.flush()
    data = text.encode(stream.encoding, "backslashreplace")
    while data:  # unbuffered Python drops the rest of a write that a full disk cut
        written = stream.buffer.write(data)
        if not written:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        data = data[written:]


def flush(stream: TextIO | None) -> OSError | None:
    """Flush the stream. Return the error if that fails, or None.

    Args:
        stream: The stream; None if the process was started without it.
    """
    if stream is None or stream.closed:
        return None
    try:
        stream.flush()
    except OSError as error:
        silence(stream)
        return error
    return None


def silence(stream: TextIO) -> None:
    """Redirect the stream to the null device, with the rest of its buffer and all later writes.

    Args:
        stream: The stream, open.
    """
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
