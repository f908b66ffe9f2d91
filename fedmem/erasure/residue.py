"""Search for given bytes (needles) in every file below a folder.

Invariants
- Every regular file is read whole, hidden files, logs and temporary files included. Symbolic links are not followed.
- A needle that straddles two reads is found.
- A file that this process has open is read through its existing descriptor. Closing a second descriptor would release
  the locks that SQLite holds on its database (POSIX), and another process could then remove its log.
- A hit names the file and the needle's name, never its bytes.

    | case | result |
    |---|---|
    | no needles, or an empty folder | no hits |
    | an empty needle | UsageError: every file contains it |
    | a file that cannot be read | StorageError: an unread file does not count as clean |
    | a file that is removed during the search | counts as clean |

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
    """A search for many needles in one pass: by first byte pairs, then first four bytes, then comparison."""

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
        """Return the names of the needles in `data`."""
        names = {name for name, needle in self._short.items() if needle in data}
        for offset in self._candidates(data):
            for name, needle in self._long[data[offset : offset + 4]]:
                if data.startswith(needle, offset):
                    names.add(name)
        return names

    def _candidates(self, data: bytes) -> list[int]:
        if len(data) < 4 or not self._long:
            return []
        octets: npt.NDArray[np.uint32] = np.frombuffer(data, dtype=np.uint8).astype(np.uint32)
        pairs = octets[:-1] | (octets[1:] << np.uint32(8))
        offsets = np.flatnonzero(self._pairs[pairs[:-2]])
        fours = pairs[offsets] | (pairs[offsets + 2] << np.uint32(16))
        return [int(i) for i in offsets[np.isin(fours, self._starts)]]


def scan(root: str | Path, needles: Mapping[str, bytes]) -> list[ResidueHit]:
    """Return a hit for every file below `root` and every needle whose bytes it contains, sorted.

    Args:
        root: the folder.
        needles: name -> bytes to search for, not empty.

    Raises:
        UsageError: a needle is empty.
        StorageError: a file or folder could not be read.
    """
    if any(not needle for needle in needles.values()):
        raise UsageError("An empty needle is in every file. Give the bytes to look for.")
    root, finder, open_files = Path(root), _Finder(needles), _open_files()
    hits = {
        ResidueHit(str(path.relative_to(root)), name)
        for path in _files(root)
        for name in _in_file(path, finder, open_files)
    }
    return sorted(hits)


def windows(data: bytes, name: str) -> dict[str, bytes]:
    """Return needles of 8 bytes at every fourth byte of `data`. They find any two neighbouring float32 values.

    Windows of fewer than four different bytes are left out: zeros, for example, are in every file.

    Args:
        data: the bytes to look for; fewer than 8 give no needle.
        name: name of the data; each needle has it with a number.

    Returns:
        Name -> 8 bytes, for `scan`.
    """
    candidates = (data[offset : offset + WINDOW] for offset in range(0, len(data) - WINDOW + 1, 4))
    return {f"{name} {number}": window for number, window in enumerate(candidates) if len(set(window)) >= WINDOW // 2}


def _files(root: Path) -> Iterator[Path]:
    with storage_errors("look through the folder"):
        for folder, _, names in os.walk(root, onerror=_raise):
            yield from (Path(folder, name) for name in names if not Path(folder, name).is_symlink())


def _in_file(path: Path, finder: _Finder, open_files: Mapping[_Inode, int]) -> set[str]:
    names: set[str] = set()
    tail, offset = b"", 0
    with storage_errors(f"look through {path.name}"), contextlib.suppress(FileNotFoundError):  # removed: clean
        if not path.is_file():
            return names  # a socket or pipe: it has no content
        with _readable(path, open_files) as handle:
            while piece := os.pread(handle, READ, offset):
                names |= finder.find(tail + piece)
                offset += len(piece)
                tail = (tail + piece)[-finder.overlap :] if finder.overlap else b""
    return names


@contextlib.contextmanager
def _readable(path: Path, open_files: Mapping[_Inode, int]) -> Iterator[int]:
    """Open `path` for reading; a descriptor that was open before stays open."""
    handle = open_files.get(_inode(os.stat(path)))
    if handle is not None:
        yield handle
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_files() -> dict[_Inode, int]:
    """Return inode -> descriptor of the regular files that this process has open for writing and may have locked."""
    descriptors = {}
    with contextlib.suppress(FileNotFoundError):  # a platform without /dev/fd
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):  # the listing's own descriptor
                status, access_mode = os.fstat(int(name)), fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE
                if stat.S_ISREG(status.st_mode) and access_mode == os.O_RDWR:
                    descriptors[_inode(status)] = int(name)
    return descriptors


def _inode(status: os.stat_result) -> _Inode:
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> None:
    raise error
