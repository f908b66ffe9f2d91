"""Leases of readers: the other processes that opened this vault, and the generation that each of them saw.

Invariants
- A reader's mark is one file under `leases/`. A lock (flock) holds it, which the system releases when the process
  ends. So `kill -9`, a reused process id or a process in another container never make a live reader look dead, or a
  dead one look alive.
- The file's name holds the generation that the reader saw, and random letters. Its content is process id and start
  time, for people to read. Neither is private (I8).
- The next process that looks removes the marks of ended readers.

    lease = Lease(root / "leases", generation)
    stale_readers(root / "leases", generation + 1)        # an erasure still has to wait for these
    lease.release()
"""

import contextlib
import json
import os
import time
import weakref
from pathlib import Path

from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import storage_errors
from fedmem.storage.forks import FORK_LOCK
from fedmem.storage.ids import new_id
from fedmem.storage.locks import FileLock

_leases: "weakref.WeakSet[Lease]" = weakref.WeakSet()


class Lease:
    """The mark of one reader, from construction until `release` or the end of the process. Raises StorageError."""

    def __init__(self, folder: Path, generation: int) -> None:
        with storage_errors("mark this process as a reader of the vault"):
            folder.mkdir(mode=0o700, exist_ok=True)
            for path in folder.iterdir():
                _is_held(path)
            self._lock, self.path = _new_mark(folder.absolute(), generation)
        self.generation = generation
        with FORK_LOCK:
            _leases.add(self)

    @property
    def is_held(self) -> bool:
        """True until the lease is released, in the process that took it."""
        return self._lock.handle >= 0

    def release(self) -> None:
        """Remove the mark. Calling it twice is fine. In a forked child it leaves the parent's mark in place."""
        if self.is_held:
            with contextlib.suppress(OSError):  # an unlocked mark counts as dead, and the next process removes it
                self.path.unlink(missing_ok=True)
            self._lock.release()


def stale_readers(folder: Path, generation: int) -> list[int]:
    """Return the process ids of live readers in other processes that saw a generation before this one, sorted.

    Readers of this process are left out: they stop at their next fetch. They are recognised by their open files: a
    process in another container may have the same process id.

    Args:
        folder: the vault's folder `leases`, which may be missing.
        generation: the vault's current generation.

    Returns:
        The process ids; 0 stands for a reader whose mark has no readable content.

    Raises:
        StorageError: the folder could not be read.
    """
    with storage_errors("look for readers of the vault"):
        held_marks = [path for path in folder.absolute().iterdir() if _is_held(path)] if folder.is_dir() else []
        with FORK_LOCK:
            marks_of_this_process = {lease.path for lease in _leases if lease.is_held}
        return sorted(
            _process(path)
            for path in held_marks
            if _generation(path) < generation and path not in marks_of_this_process
        )


def _new_mark(folder: Path, generation: int) -> tuple[FileLock, Path]:
    """Create and lock a new mark; return its lock and path."""
    facts = canonical_json({"pid": os.getpid(), "started": time.time()})
    while True:
        path = folder / f"{generation}-{new_id()}"
        with contextlib.suppress(BlockingIOError):
            lock = FileLock(path, os.O_CREAT | os.O_EXCL)
            if os.fstat(lock.handle).st_nlink:  # else another process removed it before it was locked
                os.write(lock.handle, facts)
                return lock, path
            lock.release()


def _is_held(path: Path) -> bool:
    """Return True if a live process holds this mark; remove the mark if no process does."""
    try:
        lock = FileLock(path, flags=0)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    path.unlink(missing_ok=True)
    lock.release()
    return False


def _generation(path: Path) -> int:
    number = path.name.partition("-")[0]
    return int(number) if number.isdigit() else -1  # an unknown name that is locked counts as old


def _process(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # its process holds the lock and has not written its id yet
