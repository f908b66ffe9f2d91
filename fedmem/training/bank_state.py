"""A bank on its way: whole in memory while it is trained there, or as a stream where it is larger than memory.

Invariants
- Same spec and seed give the same new blocks, as a whole or as a stream.
- `fetch_many` copies: what is done to a fetch leaves the bank as it is.
- A stream holds one piece at a time, of at most `PIECE` values or one block.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedmem.memory.block import new_blocks, new_fetch, source
from fedmem.memory.kinds import ActiveMemory
from fedmem.memory.spec import MemorySpec
from fedmem.training.seeds import derived

PIECE = 2**23


def spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) of the pieces of `count` blocks of `size` values."""
    each = max(1, PIECE // max(1, size))
    return ((first, min(count, first + each)) for first in range(0, count, each))


@dataclass(frozen=True)
class BankStream:
    """Every block of a bank: `pieces(level)`, counted from 1, yields `[n, block_size]` float32, in order, each time.

    With `root` 1 it is what lies below one node of level 1: that node's block, its k children, and so on.
    """

    spec: MemorySpec
    pieces: Callable[[int], Iterable[Tensor]] = field(repr=False)
    generic: Tensor = field(repr=False)
    root: int = 0

    def spans(self, level: int) -> Iterator[tuple[int, int]]:
        """First and last (exclusive) block of each piece of a level."""
        return spans(self.blocks(level), self.spec.block_size(level))

    def blocks(self, level: int) -> int:
        """Number of blocks of a level."""
        return int(self.spec.branching ** (level - self.root))

    @classmethod
    def new(cls, spec: MemorySpec, seed: int) -> "BankStream":
        """New blocks, which change nothing."""

        def pieces(level: int) -> Iterator[Tensor]:
            generator = _generator(seed, f"level-{level}")
            for first, last in spans(spec.blocks(level), spec.block_size(level)):
                yield new_blocks(spec, level, last - first, generator)

        return cls(spec, pieces, new_fetch(spec, _generator(seed, "generic")))


@dataclass
class BankState:
    """A bank in memory: `levels[l]` is `[k ** (l + 1), block_size]` and `generic` `[fetch_size]`, float32."""

    spec: MemorySpec
    levels: list[Tensor] = field(repr=False)
    generic: Tensor = field(repr=False)

    @classmethod
    def new(cls, spec: MemorySpec, seed: int) -> "BankState":
        """New blocks, which change nothing."""
        return cls.of(BankStream.new(spec, seed))

    @classmethod
    def of(cls, stream: BankStream) -> "BankState":
        """The whole of a stream."""
        numbers = range(1, stream.spec.levels + 1)
        return cls(stream.spec, [torch.cat(list(stream.pieces(n))) for n in numbers], stream.generic)

    def stream(self) -> BankStream:
        """This bank as a stream."""
        return BankStream(self.spec, lambda level: [self.levels[level - 1]], self.generic)

    def fetch_many(self, paths_BP: np.ndarray) -> Tensor:
        """`fetched_BX` for a batch of paths."""
        ids_BP = torch.from_numpy(np.asarray(paths_BP))
        return self.spec.join([blocks_NX[ids_BP[:, number]] for number, blocks_NX in enumerate(self.levels)])

    def source(self, paths_BP: np.ndarray) -> ActiveMemory:
        """The fetched blocks of a batch of paths as a memory source."""
        return source(self.spec, self.fetch_many(paths_BP))


def _generator(seed: int, label: str) -> torch.Generator:
    return torch.Generator().manual_seed(derived(seed, label))
