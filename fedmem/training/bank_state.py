"""Hold the blocks of a bank during training: all of them in memory, or as a stream if the bank is larger than memory.

Invariants
- The same spec and seed give the same new blocks, in memory or as a stream.
- `fetch_many` copies: a change to a fetch does not change the bank.
- A stream holds one piece at a time, of at most `PIECE` values or of one block.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedmem.memory.block import make_source, new_blocks, new_fetch
from fedmem.memory.kinds import ActiveMemory
from fedmem.memory.spec import MemorySpec
from fedmem.training.seeds import derive_seed

PIECE = 2**23
"""Number of values of a piece of a stream, at most; a piece holds at least one block."""


def spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last (exclusive) block of each piece of a level.

    Args:
        count: number of blocks.
        size: values of a block.
    """
    blocks_per_piece = max(1, PIECE // max(1, size))
    return ((first, min(count, first + blocks_per_piece)) for first in range(0, count, blocks_per_piece))


@dataclass(frozen=True)
class BankStream:
    """All blocks of a bank, read piece by piece.

    Attributes:
        spec: shape of the bank.
        pieces: `pieces(level)`, with levels from 1, yields the blocks of a level in order, as `[n, block_size]`
            float32. It can be called again.
        generic: the generic block, `[fetch_size]`, float32.
        root: 0 for a whole bank. 1 for the subtree of one node of level 1: its block, its k children, and so on.
    """

    spec: MemorySpec
    pieces: Callable[[int], Iterable[Tensor]] = field(repr=False)
    generic: Tensor = field(repr=False)
    root: int = 0

    def spans(self, level: int) -> Iterator[tuple[int, int]]:
        """Yield the first and last (exclusive) block of each piece of a level.

        Args:
            level: counted from 1.
        """
        return spans(self.blocks(level), self.spec.block_size(level))

    def blocks(self, level: int) -> int:
        """Return the number of blocks of a level.

        Args:
            level: counted from 1; for a subtree at least `root`.
        """
        return int(self.spec.branching ** (level - self.root))

    @classmethod
    def new(cls, spec: MemorySpec, seed: int) -> "BankStream":
        """Return a bank of new blocks, which change no output of the model.

        Args:
            spec: the shape of the bank.
            seed: decides every random value.
        """

        def pieces(level: int) -> Iterator[Tensor]:
            generator = _generator(seed, f"level-{level}")
            for first, last in spans(spec.blocks(level), spec.block_size(level)):
                yield new_blocks(spec, level, last - first, generator)

        return cls(spec, pieces, new_fetch(spec, _generator(seed, "generic")))


@dataclass
class BankState:
    """A bank in memory: `levels[l]` is `[k ** (l + 1), block_size]`, and `generic` is `[fetch_size]`, float32."""

    spec: MemorySpec
    levels: list[Tensor] = field(repr=False)
    generic: Tensor = field(repr=False)

    @classmethod
    def new(cls, spec: MemorySpec, seed: int) -> "BankState":
        """Return a bank of new blocks, which change no output of the model.

        Args:
            spec: the shape of the bank.
            seed: decides every random value.
        """
        return cls.of(BankStream.new(spec, seed))

    @classmethod
    def of(cls, stream: BankStream) -> "BankState":
        """Return a bank in memory with all blocks of a stream.

        Args:
            stream: a stream of a whole bank; it is read once.
        """
        numbers = range(1, stream.spec.levels + 1)
        return cls(stream.spec, [torch.cat(list(stream.pieces(n))) for n in numbers], stream.generic)

    def stream(self) -> BankStream:
        """Return this bank as a stream; it reads the blocks as they are at that time."""
        return BankStream(self.spec, lambda level: [self.levels[level - 1]], self.generic)

    def fetch_many(self, paths_BP: np.ndarray) -> Tensor:
        """Return copies of the fetched blocks of a batch of paths.

        Args:
            paths_BP: `[B, P]`, block numbers from level 1 to the leaf.

        Returns:
            `[B, fetch_size]` float32.
        """
        ids_BP = torch.from_numpy(np.asarray(paths_BP))
        return self.spec.join([blocks_NX[ids_BP[:, number]] for number, blocks_NX in enumerate(self.levels)])

    def source(self, paths_BP: np.ndarray) -> ActiveMemory:
        """Return the fetched blocks of a batch of paths as a memory source.

        Args:
            paths_BP: `[B, P]`, block numbers from level 1 to the leaf.
        """
        return make_source(self.spec, self.fetch_many(paths_BP))


def _generator(seed: int, label: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, label))
