"""File locks: one writer per vault, and the marks of readers and trainings.

Invariants
- At most one holder has a lock at a time, among all threads, vault objects and processes.
- The operating system releases a lock when its process ends, also after `kill -9` (flock). So no stale lock has to be
  removed by hand.
- A forked child holds no lock: it closes its copy of the handle (see `forks`).
- A fair lock is not taken twice past a writer that waits: a writer first gets the place of the next one, and whoever
  has released the lock has to get this place again.
"""

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from fedmem.errors import Busy
from fedmem.storage.files import storage_errors
from fedmem.storage.forks import FORK_LOCK, watch

TICK = 0.003  # seconds between two attempts, on average
_LOOK = 0.1  # seconds between two calls of `while_waiting`
NEXT = ".next"
"""The end of the name of the file whose lock is the place of the next writer."""


class FileLock:
    """A flock on one file, held from construction until `release`.

    Args:
        path: the file to lock.
        flags: flags of `os.open` in addition to O_RDWR; with O_CREAT a missing file is created with mode 0600.
        is_shared: True for a lock that excludes exclusive ones only; by default the lock is exclusive.

    Raises:
        BlockingIOError: another holder has the lock. OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, flags: int = os.O_CREAT, *, is_shared: bool = False) -> None:
        with FORK_LOCK:
            self.handle = os.open(path, os.O_RDWR | flags, 0o600)
            try:
                fcntl.flock(self.handle, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BaseException:
                os.close(self.handle)
                raise
            watch(self, is_lock=True)

    def release(self) -> None:
        """Release the lock; do nothing if it is released already."""
        with FORK_LOCK:
            self.disown()

    def disown(self) -> None:
        """Close the handle; a parent process that shares it keeps the lock."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


class WriterLock:
    """An exclusive lock on one file, held from construction until `release`.

    Args:
        path: the lock file; created if it is missing.
        resource: the name of the locked resource, for error messages.
        timeout: seconds to wait for other holders.
        is_fair: True to keep the place of the next holder in a second lock file.
        while_waiting: is called now and then while it waits.

    Raises:
        Busy: another process, or another vault object of this one, still holds it after `timeout`.
        StorageError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        resource: str = "vault",
        timeout: float = 0.0,
        is_fair: bool = False,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        deadline = time.monotonic() + timeout
        place = _acquire(path.with_name(path.name + NEXT), resource, deadline, while_waiting) if is_fair else None
        try:
            self._lock = _acquire(path, resource, deadline, while_waiting)
        finally:
            if place is not None:
                place.release()

    def release(self) -> None:
        """Release the lock; do nothing if it is released already."""
        self._lock.release()


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock of an existing file.

    Args:
        path: the lock file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with FORK_LOCK:
        handle = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two concurrent checks do not block each other
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def _acquire(path: Path, resource: str, deadline: float, while_waiting: Callable[[], object]) -> FileLock:
    look = time.monotonic() + _LOOK
    while True:
        with storage_errors(f"open the lock of the {resource}"), contextlib.suppress(BlockingIOError):
            return FileLock(path)
        now = time.monotonic()
        if now >= deadline:
            raise Busy(
                f"Another process writes to this {resource}. Close the program that uses it, or wait, and repeat."
            )
        if now >= look:
            while_waiting()
            look = now + _LOOK
        time.sleep(TICK * (0.5 + random.random()))  # noqa: S311
