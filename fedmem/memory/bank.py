"""A bank on disk, open for fetching: blocks by level, a block contiguous, bf16 (docs/design.md, §5).

Invariants
- A fetch reads one block per level, with one `preadv` each that puts its parts where the fetch has them; the bank is
  never resident as a whole.
- What `fetch` gives is one reused buffer: it holds until the next `fetch`, of this bank, by one caller at a time.
- Threads may call `fetch_many` at once: it copies, and one call waits for the other.
- Opening checks the manifest, shapes and sizes; `verify` reads every byte.

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
from fedmem.memory.bankfile import BlockFile, disk_errors, raw
from fedmem.memory.bankwriter import write_bank
from fedmem.memory.cache import Cache, Slot
from fedmem.memory.manifest import BankManifest
from fedmem.memory.spec import MemorySpec

__all__ = ["CACHE_BYTES", "Bank", "verify", "write_bank"]

CACHE_BYTES = 64 * 2**20


class _Level:
    """The files of one level, read as if they were one."""

    def __init__(self, files: list[BlockFile], counts: list[int]) -> None:
        self._files, self._ends = files, list(accumulate(counts))

    def read(self, block: int, parts: Sequence[memoryview]) -> None:
        """Fill `parts` with a block of the level."""
        shard = bisect.bisect_right(self._ends, block)
        self._files[shard].read(block - (self._ends[shard - 1] if shard else 0), parts)

    def close(self) -> None:
        for file in self._files:
            file.close()


class Bank:
    """An open bank; fetches blocks by path."""

    def __init__(self, spec: MemorySpec, levels: list[_Level], generic: BlockFile, cache_bytes: int) -> None:
        self._spec, self._levels, self._generic = spec, levels, generic
        self._cache = Cache(spec, lambda level, block, parts: levels[level].read(block, parts), cache_bytes)
        self._copying = Lock()

    @classmethod
    def open(cls, folder: Path, spec: MemorySpec, anchor: str | None = None, cache_bytes: int = CACHE_BYTES) -> "Bank":
        """Open the bank in `folder`.

        Args:
            anchor: digest of the anchor that the bank must have been made for; None does not ask.
            cache_bytes: how much memory past fetches may take; two of them are always kept.

        Raises NothingMatched where there is no bank, VersionMismatch where it is one of another spec or anchor,
        StorageError where a file is missing or truncated.
        """
        manifest = BankManifest.read(folder)
        if manifest.spec != spec:
            raise VersionMismatch(f"The bank in {folder.name} has another shape; use the one made with this anchor.")
        if anchor not in (None, manifest.anchor):
            raise VersionMismatch(f"The bank in {folder.name} was made for another anchor; use the one made with it.")
        levels = []
        for level, shards in enumerate(manifest.levels, start=1):
            size, counts = spec.block_size(level), [shard.blocks for shard in shards]
            named = zip(manifest.names(level), counts, strict=True)
            levels.append(_Level([BlockFile(folder / name, count, size) for name, count in named], counts))
        return cls(spec, levels, BlockFile(folder / manifest.generic_name, 1, spec.fetch_size), cache_bytes)

    def fetch(self, path: Sequence[int]) -> Tensor:
        """The blocks of a path, one per level, joined: `[fetch_size]` in bf16, until the next fetch.

        Raises NothingMatched for a path outside the tree, StorageError where the disk refuses.
        """
        wanted = tuple(int(block) for block in path)
        return self._cache.used(self._load(wanted))

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
        """`fetched_BX` for a batch of paths, float32, a copy."""
        chosen = list(paths)
        fetched_BX = torch.empty(len(chosen), self._spec.fetch_size)
        with self._copying:
            for row_X, path in zip(fetched_BX, chosen, strict=True):
                row_X.copy_(self.fetch(path))
        return fetched_BX

    def generic(self) -> Tensor:
        """The generic block, `[fetch_size]` float32."""
        block_X = torch.empty(self._spec.fetch_size, dtype=torch.bfloat16)
        self._generic.read(0, [raw(block_X)])
        return block_X.float()

    def blocks(self, level: int, first: int, last: int) -> Tensor:
        """Blocks `first` to `last` (exclusive) of a level (counted from 1), `[n, block_size]` float32, a copy."""
        size = self._spec.block_size(level)
        block_X, blocks_NX = torch.empty(size, dtype=torch.bfloat16), torch.empty(last - first, size)
        for number, row_X in enumerate(blocks_NX, start=first):
            self._levels[level - 1].read(number, [raw(block_X)])
            row_X.copy_(block_X)
        return blocks_NX

    def close(self) -> None:
        """Close the files."""
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
    """Read every file of the bank in `folder`. Raises VerificationFailed for the first that is not what was written."""
    for name, sha256 in BankManifest.read(folder).files():
        with disk_errors(f"read {name}"):
            try:
                with (folder / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except FileNotFoundError:
                found = ""
        if found != sha256:
            raise VerificationFailed(f"{name} was changed or is missing; fetch or build the bank again.")
