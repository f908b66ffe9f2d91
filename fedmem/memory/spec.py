"""Describe the public shape of a bank. It decides the size of a block and the order of its values.

A block is a flat vector, ordered by layer, then by segment (a part of a row, see `kinds`), then by row. A fetch joins
one block of each level, so that the rows of all levels in one segment of one layer are contiguous. This is a
concatenation on the inner dimension [docs/method.md, §2].

Invariants
- `split` is the inverse of `join`. Both only make views and copies, so gradients pass through them.
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
    """The geometry of a decoder layer.

    `activation` is the name in `transformers`; `gated` is true for an MLP with a gate, such as SwiGLU.
    """

    d_model: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    gated: bool
    activation: str


class Piece(NamedTuple):
    """The place of a contiguous piece of a fetch inside the block of its level; `level` counts from 0."""

    level: int
    start: int
    stop: int


@dataclass(frozen=True)
class MemorySpec:
    """The kind of memory, geometry of the anchor's layers, branching k, and width r as `widths[level][layer]`."""

    kind: str
    shape: LayerShape
    branching: int
    widths: tuple[tuple[int, ...], ...]

    @classmethod
    def single(cls, shape: LayerShape, layers: int, width: int) -> "MemorySpec":
        """Return the spec of one FFN block outside any tree, with the same width in every layer.

        A private block has such a spec, and so has a generic one.

        Args:
            shape: the geometry of the anchor's layers.
            layers: number of layers.
            width: rows of the block in each layer.
        """
        return cls("ffn", shape, 1, ((width,) * layers,))

    @property
    def levels(self) -> int:
        """The number of levels p."""
        return len(self.widths)

    @property
    def layers(self) -> int:
        """The number of layers of the anchor."""
        return len(self.widths[0])

    @cached_property
    def segments(self) -> dict[str, int]:
        """The parts of a row, in their order, with the number of values of each."""
        return kind_named(self.kind).segments(self.shape)

    def blocks(self, level: int) -> int:
        """Return the number of blocks of a level, k ** level.

        Args:
            level: counted from 1.
        """
        return int(self.branching**level)

    def block_size(self, level: int) -> int:
        """Return the number of values of a block of a level.

        Args:
            level: counted from 1.
        """
        return sum(self.widths[level - 1]) * sum(self.segments.values())

    @property
    def fetch_size(self) -> int:
        """The number of values of a fetch, which has one block of each level."""
        return sum(self.block_size(level) for level in range(1, self.levels + 1))

    @property
    def bank_size(self) -> int:
        """The number of values of all blocks of all levels."""
        return sum(self.blocks(level) * self.block_size(level) for level in range(1, self.levels + 1))

    def layer_sizes(self) -> list[int]:
        """Return the number of values of a fetch in each layer; their sum is `fetch_size`."""
        return [sum(level) * sum(self.segments.values()) for level in zip(*self.widths, strict=True)]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces of a fetch that are not empty, in the order of the fetch."""
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
        """Return the fetch of one block of each level.

        Args:
            levels_BX: one `[B, block_size]` for each level, from level 1.

        Returns:
            `[B, fetch_size]`.
        """
        return torch.cat([levels_BX[p.level][:, p.start : p.stop] for p in self.pieces], dim=1)

    def split(self, fetched_BX: Tensor) -> list[Tensor]:
        """Undo `join`: return the blocks of a fetch.

        Args:
            fetched_BX: `[B, fetch_size]`.

        Returns:
            One `[B, block_size]` for each level, from level 1.
        """
        stops = list(accumulate(p.stop - p.start for p in self.pieces))
        level_parts: list[list[Tensor]] = [[] for _ in self.widths]
        for piece, stop in zip(self.pieces, stops, strict=True):
            level_parts[piece.level].append(fetched_BX[:, stop - (piece.stop - piece.start) : stop])
        return [torch.cat(parts, dim=1) if parts else fetched_BX[:, :0] for parts in level_parts]

    def to_dict(self) -> dict[str, Any]:
        """Return the spec in its JSON form."""
        return asdict(self) | {"widths": [list(level) for level in self.widths]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MemorySpec":
        """Return the spec of its JSON form.

        Args:
            data: the JSON form, as `to_dict` returns it.

        Raises:
            KeyError, TypeError: `data` is no such form.
        """
        widths = tuple(tuple(level) for level in data["widths"])
        return cls(data["kind"], LayerShape(**data["shape"]), data["branching"], widths)
