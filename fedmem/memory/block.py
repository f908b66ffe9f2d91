"""Blocks as values, as a memory source, and as a trainable module.

Invariants
- Same spec and seed give the same new blocks; a new block changes nothing.
- A source never sees the anchor's parameters, only what its sites are given.

    blocks_NX = new_blocks(spec, level=1, count=spec.blocks(1), generator=generator)
    with memory.using(source(spec, fetched_BX)): ...

Shapes: N blocks, B batch (1: one for all), X values of a block or a fetch, T tokens, D model width.
"""

from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from fedmem.memory.kinds import Source, kind_named
from fedmem.memory.spec import MemorySpec


def new_blocks(spec: MemorySpec, level: int, count: int, generator: Generator) -> Tensor:
    """`count` new blocks of a level (counted from 1), `[count, block_size]` float32."""
    kind, blocks_NX = kind_named(spec.kind), torch.empty(count, spec.block_size(level))
    at = 0
    for width in spec.widths[level - 1]:
        for segment, size in spec.segments.items():
            part_NX = blocks_NX[:, at : at + width * size]
            kind.start(segment, part_NX.unflatten(1, (width, size)), spec.shape, generator)
            at += width * size
    return blocks_NX


def new_fetch(spec: MemorySpec, generator: Generator) -> Tensor:
    """A new block of the fetched width, `[fetch_size]`: how the generic block starts."""
    return spec.join([new_blocks(spec, level, 1, generator) for level in range(1, spec.levels + 1)])[0]


def source(spec: MemorySpec, fetched_BX: Tensor) -> Source:
    """A fetch as a memory source: one per batch item, or one for all.

    Raises ValueError where the fetch is not of the spec's size.
    """
    if fetched_BX.dim() != 2 or fetched_BX.shape[1] != spec.fetch_size:
        raise ValueError(f"a fetch must be [batch, {spec.fetch_size}], got {tuple(fetched_BX.shape)}")
    return kind_named(spec.kind).source(spec.shape, torch.split(fetched_BX, spec.layer_sizes(), dim=1))


class _Layer(nn.Module):
    """One layer of an FFN block as three linear maps, so that per-sample gradient hooks find them."""

    def __init__(self, rows_3RD: Tensor) -> None:
        super().__init__()
        width, d_model = rows_3RD.shape[1:]
        self.gate = nn.Linear(d_model, width, bias=False)
        self.up = nn.Linear(d_model, width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)
        with torch.no_grad():
            for linear, rows in ((self.gate, rows_3RD[0]), (self.up, rows_3RD[1]), (self.down, rows_3RD[2].T)):
                linear.weight.copy_(rows)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(hidden_BTD)) * self.up(hidden_BTD))
        return out


class BlockModule(nn.Module):
    """One trainable FFN block as a module, and as a memory source; for anchors with a SwiGLU MLP.

    `block_X` has the order of `MemorySpec.single(shape, layers, width)`.
    """

    sites = frozenset({"mlp"})

    def __init__(self, spec: MemorySpec, block_X: Tensor) -> None:
        super().__init__()
        rows_L3RD = block_X.view(spec.layers, 3, spec.widths[0][0], spec.shape.d_model)
        self.layers = nn.ModuleList(_Layer(rows_3RD) for rows_3RD in rows_L3RD)

    @classmethod
    def new(cls, spec: MemorySpec, seed: int) -> "BlockModule":
        """A new block, its M1 and M2 drawn from `seed`."""
        return cls(spec, new_blocks(spec, 1, 1, torch.Generator().manual_seed(seed))[0])

    @torch.no_grad()
    def values(self) -> Tensor:
        """The parameters as `block_X`, a detached copy."""
        layers = [cast(_Layer, layer) for layer in self.layers]
        return torch.cat([p.reshape(-1) for m in layers for p in (m.gate.weight, m.up.weight, m.down.weight.T)])

    def add(self, layer: int, site: str, hidden_BTD: Tensor, output_BTD: Tensor) -> Tensor:
        """The MLP's output with the block's part added."""
        added: Tensor = self.layers[layer](hidden_BTD)
        return output_BTD + added
