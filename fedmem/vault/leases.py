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
import fcntl
import json
import os
import time
from pathlib import Path

from fedmem.canonical import canonical_json
from fedmem.vault.fs import storage_errors
from fedmem.vault.ids import new_id


class Lease:
    """One reader's mark, from construction until `release` or the end of the process. Raises StorageError."""

    def __init__(self, folder: Path, generation: int) -> None:
        with storage_errors("mark this process as a reader of the vault"):
            folder.mkdir(mode=0o700, exist_ok=True)
            for path in folder.iterdir():
                _is_held(path)
            self._handle, self._path = _marked(folder, generation)

    def release(self) -> None:
        """Give the lease back; calling it twice is fine."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):  # without the lock the mark is a dead one, whoever removes it
                self._path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1


def older(folder: Path, generation: int) -> list[int]:
    """Process ids of live readers in other processes that saw a generation before this one.

    The own process is left out: its readers stop at their next fetch, and its memory is not another program's.
    """
    with storage_errors("look for readers of the vault"):
        held = [path for path in folder.iterdir() if _is_held(path)] if folder.is_dir() else []
        found = [_process(path) for path in held if _generation(path) < generation]
    return sorted(process for process in found if process != os.getpid())


def _marked(folder: Path, generation: int) -> tuple[int, Path]:
    facts = canonical_json({"pid": os.getpid(), "started": time.time()})
    while True:
        path = folder / f"{generation}-{new_id()}"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:  # else somebody took it for a dead one before it was locked
                os.write(handle, facts)
                return handle, path
        os.close(handle)


def _is_held(path: Path) -> bool:
    """Whether a live process holds this mark; one that is not held is removed."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)


def _generation(path: Path) -> int:
    number = path.name.partition("-")[0]
    return int(number) if number.isdigit() else -1  # a stranger that is held counts as old


def _process(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # it is held, by a process that has not said who it is
