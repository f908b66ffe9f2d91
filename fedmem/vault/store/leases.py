"""Leases of readers: which other processes opened this vault, and at which generation.

Invariants
- A reader's mark is one file under `leases/`, held by a lock that falls with its process (flock): `kill -9`, a
  reused process id or a process of another container are never mistaken for a live reader or a dead one.
- Its name holds the vault's generation that the reader saw, and random letters; inside are process id and start time,
  for people. Nothing private (I8).
- Marks of the dead are removed by whoever looks.

    lease = Lease(root / "leases", generation)
    older(root / "leases", generation + 1)        # what an erasure still has to wait for
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
    """One reader's mark, from construction until `release` or the end of the process. Raises StorageError."""

    def __init__(self, folder: Path, generation: int) -> None:
        with storage_errors("mark this process as a reader of the vault"):
            folder.mkdir(mode=0o700, exist_ok=True)
            for path in folder.iterdir():
                _is_held(path)
            self._lock, self.path = _marked(folder.absolute(), generation)
        with FORK_LOCK:
            _leases.add(self)

    @property
    def is_held(self) -> bool:
        """True until the lease is given back, and in the process that took it only."""
        return self._lock.handle >= 0

    def release(self) -> None:
        """Give the lease back; calling it twice is fine. A forked child leaves its parent's mark alone."""
        if self.is_held:
            with contextlib.suppress(OSError):  # without the lock the mark is a dead one, whoever removes it
                self.path.unlink(missing_ok=True)
            self._lock.release()


def older(folder: Path, generation: int) -> list[int]:
    """Return the process ids of live readers in other processes that saw a generation before this one.

    Readers of this process are left out: they stop at their next fetch. They are known by their handles, since in
    another container another process may have the same id.
    """
    with storage_errors("look for readers of the vault"):
        held = [path for path in folder.absolute().iterdir() if _is_held(path)] if folder.is_dir() else []
        with FORK_LOCK:
            own = {lease.path for lease in _leases if lease.is_held}
        return sorted(_process(path) for path in held if _generation(path) < generation and path not in own)


def _marked(folder: Path, generation: int) -> tuple[FileLock, Path]:
    facts = canonical_json({"pid": os.getpid(), "started": time.time()})
    while True:
        path = folder / f"{generation}-{new_id()}"
        with contextlib.suppress(BlockingIOError):
            lock = FileLock(path, os.O_CREAT | os.O_EXCL)
            if os.fstat(lock.handle).st_nlink:  # else somebody took it for a dead one before it was locked
                os.write(lock.handle, facts)
                return lock, path
            lock.release()


def _is_held(path: Path) -> bool:
    """Return True if a live process holds this mark; remove one that nobody holds."""
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
    return int(number) if number.isdigit() else -1  # a stranger that is held counts as old


def _process(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # it is held, by a process that has not said who it is
