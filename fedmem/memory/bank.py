"""Fetch blocks from a bank on disk: one file set for each level, each block contiguous, in bf16 (docs/design.md, §5).

Invariants
- A fetch reads one block of each level with one `preadv`, directly into the buffer of the fetch. The whole bank is
  never in memory.
- `fetch` returns a buffer that is used again. Its values are valid until the next `fetch` of this bank, and only one
  caller may use it at a time.
- Several threads may call `fetch_many`: it copies, and the calls wait for each other.
- A forked child may use a bank that was opened before the fork, also if a thread of the parent was fetching.
- Opening a bank checks the manifest, shapes and sizes; `verify` reads every byte.

    with Bank.open(folder, spec) as bank:
        fetched_X = bank.fetch((1, 5, 23))

Shapes: N blocks of a level, B batch, X values of a block or a fetch.
"""

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from fedmem.errors import NothingMatched, VerificationFailed, VersionMismatch
from fedmem.memory.bankfile import BlockFile, raw
from fedmem.memory.bankwriter import write_bank
from fedmem.memory.cache import Cache, Slot
from fedmem.memory.manifest import BankManifest
from fedmem.memory.spec import MemorySpec
from fedmem.storage import forks
from fedmem.storage.files import storage_errors

__all__ = ["CACHE_BYTES", "Bank", "verify", "write_bank"]

CACHE_BYTES = 64 * 2**20


class _Level:
    """The files of one level, read like one file."""

    def __init__(self, files: list[BlockFile], counts: list[int]) -> None:
        self._files, self._ends = files, list(accumulate(counts))

    def read(self, block: int, parts: Sequence[memoryview]) -> None:
        """Read a block of the level into `parts`."""
        shard = bisect.bisect_right(self._ends, block)
        self._files[shard].read(block - (self._ends[shard - 1] if shard else 0), parts)

    def close(self) -> None:
        for file in self._files:
            file.close()


class Bank:
    """An open bank, from which blocks are fetched by path; `Bank.open` returns it.

    Args:
        spec: the shape of the bank.
        levels: the files of each level, from level 1.
        generic: the file of the generic block.
        cache_bytes: the most memory for recent fetches, in bytes.
    """

    def __init__(self, spec: MemorySpec, levels: list[_Level], generic: BlockFile, cache_bytes: int) -> None:
        self._spec, self._levels, self._generic, self._cache_bytes = spec, levels, generic, cache_bytes
        self.disown()
        forks.watch(self)

    def disown(self) -> None:
        """Start with an empty cache and a free lock: those of the parent may be in use by a thread of the parent."""
        levels = self._levels
        self._cache = Cache(self._spec, lambda level, block, parts: levels[level].read(block, parts), self._cache_bytes)
        self._copying = Lock()

    @classmethod
    def open(cls, folder: Path, spec: MemorySpec, anchor: str | None = None, cache_bytes: int = CACHE_BYTES) -> "Bank":
        """Open the bank in `folder`.

        Args:
            folder: holds the bank's manifest and files.
            spec: the shape that the bank must have.
            anchor: digest of the anchor that the bank must have been made for; None skips this check.
            cache_bytes: the most memory, in bytes, for recent fetches. At least two fetches are always kept.

        Raises:
            NothingMatched: the folder holds no bank.
            VersionMismatch: the bank has another spec, anchor or format.
            VerificationFailed: the manifest was changed.
            StorageError: a file is missing or truncated.
        """
        manifest = BankManifest.read(folder)
        if manifest.spec != spec:
            raise VersionMismatch(f"The bank in {folder.name} has another shape; use the one made with this anchor.")
        if anchor not in (None, manifest.anchor):
            raise VersionMismatch(f"The bank in {folder.name} was made for another anchor; use the one made with it.")
        levels = []
        for level, shards in enumerate(manifest.levels, start=1):
            size, counts = spec.block_size(level), [shard.blocks for shard in shards]
            files = [
                BlockFile(folder / name, count, size) for name, count in zip(manifest.names(level), counts, strict=True)
            ]
            levels.append(_Level(files, counts))
        return cls(spec, levels, BlockFile(folder / manifest.generic_name, 1, spec.fetch_size), cache_bytes)

    def fetch(self, path: Sequence[int]) -> Tensor:
        """Return the joined blocks of a path, one of each level.

        Args:
            path: block numbers from level 1 to the leaf.

        Returns:
            `[fetch_size]` in bf16, valid until the next fetch.

        Raises:
            NothingMatched: the path is not in the tree.
            StorageError: the disk cannot be read.
        """
        return self._cache.used(self._load(tuple(int(block) for block in path)))

    def _load(self, path: tuple[int, ...]) -> Slot:
        if len(path) != self._spec.levels:
            raise NothingMatched(f"A path in this tree has {self._spec.levels} blocks, not {len(path)}.")
        for level, block in enumerate(path, start=1):
            if not 0 <= block < self._spec.blocks(level):
                raise NothingMatched(
                    f"Level {level} has {self._spec.blocks(level)} blocks, none with number {block}; "
                    "route the text with the tree of this release."
                )
        return self._cache.load(path)

    def fetch_many(self, paths: Iterable[Sequence[int]]) -> Tensor:
        """Return the fetches of a batch of paths. Raises as `fetch`.

        Args:
            paths: block numbers from level 1 to the leaf, for each item of the batch.

        Returns:
            `[batch, fetch_size]` float32, a copy.
        """
        batch_paths = list(paths)
        fetched_BX = torch.empty(len(batch_paths), self._spec.fetch_size)
        with self._copying:
            for row_X, path in zip(fetched_BX, batch_paths, strict=True):
                row_X.copy_(self.fetch(path))
        return fetched_BX

    def generic(self) -> Tensor:
        """Return the generic block, `[fetch_size]` float32. Raises StorageError if the disk cannot be read."""
        block_X = torch.empty(self._spec.fetch_size, dtype=torch.bfloat16)
        self._generic.read(0, [raw(block_X)])
        return block_X.float()

    def blocks(self, level: int, first: int, last: int) -> Tensor:
        """Return a copy of the blocks `first` to `last` (exclusive) of a level, `[last - first, block_size]` float32.

        Args:
            level: counted from 1.
            first: number of the first block, from 0.
            last: number after the last block.

        Raises:
            StorageError: the disk cannot be read.
        """
        size = self._spec.block_size(level)
        block_X, blocks_NX = torch.empty(size, dtype=torch.bfloat16), torch.empty(last - first, size)
        for number, row_X in enumerate(blocks_NX, start=first):
            self._levels[level - 1].read(number, [raw(block_X)])
            row_X.copy_(block_X)
        return blocks_NX

    def close(self) -> None:
        """Close the files of the bank."""
        for level in self._levels:
            level.close()
        self._generic.close()

    def __enter__(self) -> "Bank":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def verify(folder: Path) -> None:
    """Read every file of the bank in `folder` and compare its SHA-256 with the manifest.

    Args:
        folder: folder of the bank.

    Raises:
        VerificationFailed: a file or the manifest was changed, or a file is missing.
        NothingMatched: the folder holds no bank.
        StorageError: the disk cannot be read.
    """
    for name, expected_sha256 in BankManifest.read(folder).files():
        with storage_errors(f"read {name}"):
            try:
                with (folder / name).open("rb") as file:
                    actual_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                actual_sha256 = ""
        if actual_sha256 != expected_sha256:
            raise VerificationFailed(f"{name} was changed or is missing; fetch or build the bank again.")
