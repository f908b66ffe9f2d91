"""File locks: one writer per vault, and the marks of readers and trainings.

Invariants
- At most one holder at a time, over threads, vault objects and processes.
- A lock falls with its process, `kill -9` included (flock), so no stale lock is ever cleared by hand.
- A forked child holds nothing: it closes its copy of the handle (see `forks`).
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path

from fedmem.errors import Busy
from fedmem.storage.files import storage_errors
from fedmem.storage.forks import FORK_LOCK, watch

TICK = 0.02  # seconds between two attempts


class FileLock:
    """An exclusive flock on one file, held from construction until `release`.

    Args:
        path: the file to lock.
        flags: flags of `os.open` beside O_RDWR; the file is made with mode 0600 where they hold O_CREAT.

    Raises:
        BlockingIOError: another holder has the lock. OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, flags: int = os.O_CREAT) -> None:
        with FORK_LOCK:
            self.handle = os.open(path, os.O_RDWR | flags, 0o600)
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(self.handle)
                raise
            watch(self)

    def release(self) -> None:
        """Give the lock back; calling it twice is fine."""
        with FORK_LOCK:
            self.disown()

    def disown(self) -> None:
        """Close the handle; where a parent shares it, the parent keeps the lock."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


class WriterLock:
    """An exclusive lock on one file, held from construction until `release`.

    Args:
        path: the lock file; made where it is missing.
        what: the thing that is locked, for the message.
        timeout: seconds to wait for another holder.

    Raises:
        Busy: another process, or another vault object of this one, still holds it after `timeout`.
        StorageError: the file cannot be opened.
    """

    def __init__(self, path: Path, what: str = "vault", timeout: float = 0.0) -> None:
        self._lock = _taken(path, what, time.monotonic() + timeout)

    def release(self) -> None:
        """Give the lock back; calling it twice is fine."""
        self._lock.release()


def is_locked(path: Path) -> bool:
    """Return True if somebody holds the lock of an existing file. Raises FileNotFoundError."""
    with FORK_LOCK:
        handle = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not meet each other
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def _taken(path: Path, what: str, limit: float) -> FileLock:
    while True:
        with storage_errors(f"open the lock of the {what}"), contextlib.suppress(BlockingIOError):
            return FileLock(path)
        if time.monotonic() >= limit:
            raise Busy(f"Another process writes to this {what}. Close the program that uses it, or wait, and repeat.")
        time.sleep(TICK)
