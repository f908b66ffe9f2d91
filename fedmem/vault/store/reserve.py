"""The reserve: a file of zeros whose space an erasure uses if the disk is full.

Invariants
- The file holds zeros only, so it holds no content. Its blocks are really allocated.
- It is made when the vault is created. An opening for writing, a batch of new records and the end of an erasure make it
  again and adapt its size, as far as the disk has room. A missing or small reserve is no error.
- An erasure removes it before its first write. Adding a record never does, so a full disk stays full for everything
  else. An opening that a full disk stops takes `OPENING` bytes of it: SQLite needs a file beside the database.
- A simulated vault has none.

    with reserve.released(vault.core):
        ...                             # the erasure
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from fedmem.errors import FedmemError, StorageError
from fedmem.storage.files import Files, storage_errors
from fedmem.vault.store.core import Core

NAME = "reserve"
Result = TypeVar("Result")
LEAST = 1 << 20  # bytes: the log of a small erasure, a key, a receipt, and some openings on a full disk
FULL = 256 << 10  # bytes of free space below which a disk counts as full; the reserve leaves them free
OPENING = 96 << 10  # bytes that an opening needs: SQLite's index of its log, a lease, a log
_CONTENT = ("vault.db", "vault.db-wal", "table.fmk", "table.log")


def keep(core: Core) -> None:
    """Make the reserve of an open vault, or adapt its size; take less if the disk has no room for all of it.

    Args:
        core: a vault that is open for writing. A simulated vault has no reserve.
    """
    if core.simulated:
        return
    files, root = core.files, core.root
    path, size = root / NAME, size_for(root)
    present = path.stat().st_size if path.is_file() else 0
    if size <= present <= 4 * size:
        return
    with contextlib.suppress(FedmemError, OSError):
        if present > size:
            files.unlink(path)
            present = 0
        room = shutil.disk_usage(root).free + present - FULL
        if room > present:
            files.allocate(path, min(size + size // 2, room))  # half more, so that it seldom has to grow


def yield_some(files: Files, root: Path) -> bool:
    """Cut the reserve by `OPENING` bytes if the disk is full. Return False if there was nothing to cut.

    Args:
        files: the file layer.
        root: the vault's folder.

    Raises:
        StorageError: it cannot be cut.
    """
    path = root / NAME
    size = path.stat().st_size if path.is_file() else 0
    if not size or not is_full(root):
        return False
    files.truncate(path, max(0, size - OPENING))
    return True


@contextlib.contextmanager
def released(core: Core) -> Iterator[None]:
    """Remove the reserve for the duration of the block, and make it again afterwards.

    Args:
        core: a vault that is open for writing.
    """
    if (core.root / NAME).exists():
        with contextlib.suppress(FedmemError):
            core.files.unlink(core.root / NAME)
            core.files.sync_folder(core.root)
    try:
        yield
    finally:
        keep(core)


def with_room(files: Files, root: Path, work: Callable[[], Result]) -> Result:
    """Return the result of `work`. If a full disk stops it, cut the reserve once and repeat it.

    Args:
        files: the file layer.
        root: the vault's folder.
        work: can be repeated after a StorageError.

    Raises:
        StorageError: there was no reserve to cut, or the second try failed too. Other errors as `work`.
    """
    try:
        return work()
    except StorageError:
        if not yield_some(files, root):
            raise
        return work()


def is_full(root: Path) -> bool:
    """Return True if the file system of the vault at `root` has almost no free space.

    Args:
        root: the vault's folder.

    Raises:
        StorageError: the free space cannot be read.
    """
    with storage_errors("read the free space of the disk"):
        return shutil.disk_usage(root).free < FULL


def size_for(root: Path) -> int:
    """Return the bytes that an erasure may need: twice the key table and the database, which may be rebuilt.

    The list of erased items and its receipt are smaller than the database.

    Args:
        root: the vault's folder.
    """
    return LEAST + 2 * sum(path.stat().st_size for name in _CONTENT if (path := root / name).is_file())
