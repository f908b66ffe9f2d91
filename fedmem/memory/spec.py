"""The public shape of a bank: everything that the size and inner order of a block follow from.

A block is a flat vector: layer by layer, segment by segment (a kind's parts), row by row. A fetch joins one block per
level so that the rows of all levels of one segment of one layer are contiguous: concatenation on the inner dimension
[docs/method.md, §2].

Invariants
- `split` undoes `join`; both are views and copies only, so they carry gradients.
- Widths may differ by level and by layer; a width of 0 leaves a layer without memory.

>>> shape = LayerShape(d_model=128, ffn=384, heads=4, kv_heads=4, head_dim=32, gated=True, activation="silu")
>>> spec = MemorySpec("ffn", shape, branching=4, widths=((32,) * 4, (16,) * 4))
>>> spec.blocks(2), spec.block_size(1), spec.fetch_size
(16, 49152, 73728)

Shapes: B batch, X values of a block or a fetch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmem.memory.kinds import kind_named


@dataclass(frozen=True)
class LayerShape:
    """Geometry of a decoder layer; `activation` by its name in `transformers`, `gated` for SwiGLU and its kin."""

    d_model: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool
    activation: str


class Piece(NamedTuple):
    """Where a contiguous piece of a fetch lies inside the block of its level; `level` counts from 0."""

    level: int
    start: int
    stop: int


@dataclass(frozen=True)
class MemorySpec:
    """Kind of memory, geometry of the anchor's layers, branching k, and the width r as `widths[level][layer]`."""

    kind: str
    shape: LayerShape
    branching: int
    widths: tuple[tuple[int, ...], ...]

    @classmethod
    def single(cls, shape: LayerShape, layers: int, width: int) -> "MemorySpec":
        """One FFN block outside any tree, of the same width in every layer: a private block, or a generic one."""
        return cls("ffn", shape, 1, ((width,) * layers,))

    @property
    def levels(self) -> int:
        """Number of levels p."""
        return len(self.widths)

    @property
    def layers(self) -> int:
        """Number of layers of the anchor."""
        return len(self.widths[0])

    @cached_property
    def segments(self) -> dict[str, int]:
        """Parts of a row, in their order, with the number of values of each."""
        return kind_named(self.kind).segments(self.shape)

    def blocks(self, level: int) -> int:
        """Number of blocks of a level, counted from 1: k ** level."""
        return int(self.branching**level)

    def block_size(self, level: int) -> int:
        """Values in a block of a level, counted from 1."""
        return sum(self.widths[level - 1]) * sum(self.segments.values())

    @property
    def fetch_size(self) -> int:
        """Values in a fetch: one block of each level."""
        return sum(self.block_size(level) for level in range(1, self.levels + 1))

    @property
    def bank_size(self) -> int:
        """Values in all blocks of all levels."""
        return sum(self.blocks(level) * self.block_size(level) for level in range(1, self.levels + 1))

    def layer_sizes(self) -> list[int]:
        """Values of a fetch by layer; they add up to `fetch_size`."""
        return [sum(level) * sum(self.segments.values()) for level in zip(*self.widths, strict=True)]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces of a fetch, in its order; empty ones are left out."""
        return tuple(piece for piece in self._pieces() if piece.stop > piece.start)

    def _pieces(self) -> Iterator[Piece]:
        at = [0] * self.levels
        for layer in range(self.layers):
            for size in self.segments.values():
                for level, widths in enumerate(self.widths):
                    stop = at[level] + widths[layer] * size
                    yield Piece(level, at[level], stop)
                    at[level] = stop

    def join(self, levels_BX: Sequence[Tensor]) -> Tensor:
        """One block per level, `[B, block_size]` each, as one fetch `[B, fetch_size]`."""
        return torch.cat([levels_BX[p.level][:, p.start : p.stop] for p in self.pieces], dim=1)

    def split(self, fetched_BX: Tensor) -> list[Tensor]:
        """The inverse of `join`: one `[B, block_size]` per level."""
        stops = list(accumulate(p.stop - p.start for p in self.pieces))
        found: list[list[Tensor]] = [[] for _ in self.widths]
        for piece, stop in zip(self.pieces, stops, strict=True):
            found[piece.level].append(fetched_BX[:, stop - (piece.stop - piece.start) : stop])
        return [torch.cat(parts, dim=1) if parts else fetched_BX[:, :0] for parts in found]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"widths": [list(level) for level in self.widths]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MemorySpec":
        """Inverse of `to_dict`."""
        widths = tuple(tuple(level) for level in data["widths"])
        return cls(data["kind"], LayerShape(**data["shape"]), data["branching"], widths)
