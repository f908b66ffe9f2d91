"""The bank while it is trained, in memory and in float32.

Invariants
- Same spec and seed give the same new blocks.
- `fetch_many` copies: what is done to a fetch leaves the bank as it is.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedmem.memory.block import new_blocks, new_fetch, source
from fedmem.memory.kinds import Source
from fedmem.memory.spec import MemorySpec


@dataclass
class BankState:
    """`levels[l]` is `[k ** (l + 1), block_size]` and `generic` `[fetch_size]`, float32."""

    spec: MemorySpec
    levels: list[Tensor] = field(repr=False)
    generic: Tensor = field(repr=False)

    @classmethod
    def new(cls, spec: MemorySpec, seed: int) -> "BankState":
        """New blocks, which change nothing."""
        generator = torch.Generator().manual_seed(seed)
        levels = [new_blocks(spec, n, spec.blocks(n), generator) for n in range(1, spec.levels + 1)]
        return cls(spec, levels, new_fetch(spec, generator))

    def fetch_many(self, paths_BP: np.ndarray) -> Tensor:
        """`fetched_BX` for a batch of paths."""
        ids_BP = torch.from_numpy(np.asarray(paths_BP))
        return self.spec.join([blocks_NX[ids_BP[:, number]] for number, blocks_NX in enumerate(self.levels)])

    def source(self, paths_BP: np.ndarray) -> Source:
        """The fetched blocks of a batch of paths as a memory source."""
        return source(self.spec, self.fetch_many(paths_BP))
