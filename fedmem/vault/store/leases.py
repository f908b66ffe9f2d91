"""Leases: the openings of a vault, in any thread, process or container, and the generation that each of them saw.

Invariants
- An opening's mark is one file under `leases/`. A lock (flock) on the open file holds it. So an opening is known by its
  open file, never by a process id: two containers may both have a process 1.
- The system releases the lock when the last process with the open file ends or closes it. A forked child has the open
  file too, and closes it after it has overwritten its copies of keys and rows (see `forks`). Until then the mark holds,
  even if the parent has ended. A stopped process (SIGSTOP) holds it as well.
- The file's name holds the generation that the opening saw, and random letters. Its content is process id and start
  time, for people to read. Neither is private (I8).
- The next process that looks removes the marks that nothing holds.

    lease = Lease(root / "leases", generation)
    stale_readers(root / "leases", generation + 1)        # an erasure still has to wait for these
    lease.release()
"""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import storage_errors
from fedmem.storage.ids import new_id
from fedmem.storage.locks import FileLock


@dataclass(frozen=True, order=True)
class StaleLease:
    """A live opening that saw an earlier generation.

    Attributes:
        process: its process id, as its own container counts; 0 if its mark has no readable content.
        mark: the name of its mark.
    """

    process: int
    mark: str


class Lease:
    """The mark of one opening, from construction until `release` or the end of the process. Raises StorageError."""

    def __init__(self, folder: Path, generation: int) -> None:
        with storage_errors("mark this process as a reader of the vault"):
            folder.mkdir(mode=0o700, exist_ok=True)
            for path in folder.iterdir():
                _is_held(path)
            self._lock, self.path = _new_mark(folder.absolute(), generation)
        self.generation = generation

    @property
    def is_held(self) -> bool:
        """True until the lease is released, in the process that took it."""
        return self._lock.handle >= 0

    def move(self, generation: int) -> None:
        """Mark a later generation from now on, in place of the present one. This needs no space on the disk.

        Args:
            generation: the generation that the opening sees now.

        Raises:
            StorageError: the mark is as it was.
        """
        path = self.path.with_name(f"{generation}-{new_id()}")
        with storage_errors("mark this process as a reader of the vault"):
            os.rename(self.path, path)
        self.path, self.generation = path, generation

    def release(self) -> None:
        """Release the mark; calling it twice is fine. In a forked child it does nothing.

        The file stays as long as a forked child still has it open, with keys and rows in its memory.
        """
        if self.is_held:
            self._lock.release()
            with contextlib.suppress(OSError):  # an unlocked mark counts as dead, and the next process removes it
                _is_held(self.path)


def stale_readers(folder: Path, generation: int, own: Lease | None = None) -> list[StaleLease]:
    """Return the live openings that saw a generation before this one, sorted.

    Args:
        folder: the vault's folder `leases`, which may be missing.
        generation: the vault's current generation.
        own: the lease of the opening that asks; it is left out. Other openings of this process are not.

    Raises:
        StorageError: the folder could not be read.
    """
    with storage_errors("look for readers of the vault"):
        marks = [path for path in folder.iterdir() if _is_held(path)] if folder.is_dir() else []
        if own is not None and own.is_held:
            marks = [path for path in marks if path.name != own.path.name]
        return sorted(StaleLease(_process(path), path.name) for path in marks if _generation(path) < generation)


def _new_mark(folder: Path, generation: int) -> tuple[FileLock, Path]:
    """Create and lock a new mark; return its lock and path."""
    facts = canonical_json({"pid": os.getpid(), "started": time.time()})
    while True:
        path = folder / f"{generation}-{new_id()}"
        with contextlib.suppress(BlockingIOError):
            lock = FileLock(path, os.O_CREAT | os.O_EXCL)
            try:
                if os.fstat(lock.handle).st_nlink:  # else another process removed it before it was locked
                    os.write(lock.handle, facts)
                    return lock, path
            except OSError:  # a full disk: an empty mark would look like a reader
                path.unlink(missing_ok=True)
                lock.release()
                raise
            lock.release()


def _is_held(path: Path) -> bool:
    """Return True if a live process holds this mark; remove the mark if no process does."""
    try:
        lock = FileLock(path, flags=0, is_shared=True)  # shared: two processes that look do not block each other
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
