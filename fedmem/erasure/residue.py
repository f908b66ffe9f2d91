"""Look for given bytes in every file below a folder.

Invariants
- Every regular file is read whole, hidden ones, logs and temporaries included; symbolic links are not followed.
- A needle that straddles two reads is found.
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

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedmem.errors import UsageError
from fedmem.vault.fs import storage_errors

READ = 4 << 20


@dataclass(frozen=True, order=True)
class Hit:
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


def scan(root: str | Path, needles: Mapping[str, bytes]) -> list[Hit]:
    """Every (file, needle) such that the file lies below `root` and holds the needle's bytes, sorted.

    Raises:
        UsageError: an empty needle. StorageError: a file or folder could not be read.
    """
    if any(not needle for needle in needles.values()):
        raise UsageError("An empty needle is in every file. Give the bytes to look for.")
    root, finder = Path(root), _Finder(needles)
    hits = {Hit(str(path.relative_to(root)), name) for path in _files(root) for name in _in_file(path, finder)}
    return sorted(hits)


def _files(root: Path) -> Iterator[Path]:
    with storage_errors("look through the folder"):
        for folder, _, names in os.walk(root, onerror=_raise):
            yield from (Path(folder, name) for name in names if not Path(folder, name).is_symlink())


def _in_file(path: Path, finder: _Finder) -> set[str]:
    found: set[str] = set()
    tail = b""
    with storage_errors(f"look through {path.name}"):
        if not path.is_file():
            return found  # vanished, or a socket or pipe: nothing lies in it
        with path.open("rb") as file:
            while piece := file.read(READ):
                found |= finder.find(tail + piece)
                tail = (tail + piece)[-finder.overlap :] if finder.overlap else b""
    return found


def _raise(error: OSError) -> None:
    raise error
