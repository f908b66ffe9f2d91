"""Look for given bytes in every file below a folder.

Invariants
- Every regular file is read whole, hidden ones, logs and temporaries included; symbolic links are not followed.
- A needle that straddles two reads is found.
- A file that this process has open is read through the descriptor that it has: closing another one would drop the
  locks that SQLite holds on its database (POSIX), and a second process could then take its log away.
- A hit names the file and the needle's name, never its bytes.

    | case | result |
    |---|---|
    | no needles, or an empty folder | no hits |
    | an empty needle | UsageError: it would be everywhere |
    | a file that cannot be read | StorageError: not looked at is not clean |
    | a file that vanishes while looking | gone, so clean |

>>> import tempfile, pathlib
>>> with tempfile.TemporaryDirectory() as folder:
...     _ = pathlib.Path(folder, "log").write_bytes(b"..canary..")
...     [hit.needle for hit in scan(folder, {"word": b"canary"})]
['word']
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedmem.errors import UsageError
from fedmem.storage.files import storage_errors

READ = 4 << 20
WINDOW = 8  # bytes: two float32 values
_Inode = tuple[int, int]


@dataclass(frozen=True, order=True)
class ResidueHit:
    """A needle found in a file; `file` is relative to the root."""

    file: str
    needle: str


class _Finder:
    """Finds many needles in one pass: a table of first byte pairs, then of first four bytes, then a comparison."""

    def __init__(self, needles: Mapping[str, bytes]) -> None:
        self.overlap = max((len(needle) for needle in needles.values()), default=1) - 1
        self._short = {name: needle for name, needle in needles.items() if len(needle) < 4}
        self._long: dict[bytes, list[tuple[str, bytes]]] = {}
        for name, needle in needles.items():
            if len(needle) >= 4:
                self._long.setdefault(needle[:4], []).append((name, needle))
        self._pairs = np.zeros(1 << 16, dtype=bool)
        self._pairs[[int.from_bytes(start[:2], "little") for start in self._long]] = True
        starts = [int.from_bytes(start, "little") for start in self._long]
        self._starts = np.array(sorted(starts), dtype=np.uint32)

    def find(self, data: bytes) -> set[str]:
        """Names of the needles in `data`."""
        found = {name for name, needle in self._short.items() if needle in data}
        for at in self._candidates(data):
            for name, needle in self._long[data[at : at + 4]]:
                if data.startswith(needle, at):
                    found.add(name)
        return found

    def _candidates(self, data: bytes) -> list[int]:
        if len(data) < 4 or not self._long:
            return []
        octets: npt.NDArray[np.uint32] = np.frombuffer(data, dtype=np.uint8).astype(np.uint32)
        pairs = octets[:-1] | (octets[1:] << np.uint32(8))
        at = np.flatnonzero(self._pairs[pairs[:-2]])
        fours = pairs[at] | (pairs[at + 2] << np.uint32(16))
        return [int(i) for i in at[np.isin(fours, self._starts)]]


def scan(root: str | Path, needles: Mapping[str, bytes]) -> list[ResidueHit]:
    """Every (file, needle) such that the file lies below `root` and holds the needle's bytes, sorted.

    Raises:
        UsageError: an empty needle. StorageError: a file or folder could not be read.
    """
    if any(not needle for needle in needles.values()):
        raise UsageError("An empty needle is in every file. Give the bytes to look for.")
    root, finder, held = Path(root), _Finder(needles), _held()
    hits = {
        ResidueHit(str(path.relative_to(root)), name) for path in _files(root) for name in _in_file(path, finder, held)
    }
    return sorted(hits)


def windows(data: bytes, name: str) -> dict[str, bytes]:
    """Needles of 8 bytes at every fourth byte of `data`, which finds any two neighbours of float32 rows or vectors.

    Windows of fewer than four different bytes are left out: zeros are in every file, and tell nothing.
    """
    pieces = (data[at : at + WINDOW] for at in range(0, len(data) - WINDOW + 1, 4))
    return {f"{name} {at}": piece for at, piece in enumerate(pieces) if len(set(piece)) >= WINDOW // 2}


def _files(root: Path) -> Iterator[Path]:
    with storage_errors("look through the folder"):
        for folder, _, names in os.walk(root, onerror=_raise):
            yield from (Path(folder, name) for name in names if not Path(folder, name).is_symlink())


def _in_file(path: Path, finder: _Finder, held: Mapping[_Inode, int]) -> set[str]:
    found: set[str] = set()
    tail, at = b"", 0
    with storage_errors(f"look through {path.name}"), contextlib.suppress(FileNotFoundError):  # vanished: clean
        if not path.is_file():
            return found  # a socket or pipe: nothing lies in it
        with _readable(path, held) as handle:
            while piece := os.pread(handle, READ, at):
                found |= finder.find(tail + piece)
                at += len(piece)
                tail = (tail + piece)[-finder.overlap :] if finder.overlap else b""
    return found


@contextlib.contextmanager
def _readable(path: Path, held: Mapping[_Inode, int]) -> Iterator[int]:
    """A descriptor of `path`; closed at the end only where it was opened for this."""
    handle = held.get(_inode(os.stat(path)))
    if handle is not None:
        yield handle
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _held() -> dict[_Inode, int]:
    """The regular files that this process has open for writing, and may have locked."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # a platform without /dev/fd
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):  # the listing's own descriptor
                facts, mode = os.fstat(int(name)), fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE
                if stat.S_ISREG(facts.st_mode) and mode == os.O_RDWR:
                    found[_inode(facts)] = int(name)
    return found


def _inode(facts: os.stat_result) -> _Inode:
    return facts.st_dev, facts.st_ino


def _raise(error: OSError) -> None:
    raise error
