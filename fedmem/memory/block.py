"""Make new blocks, and make memory sources of fetches.

Invariants
- Same spec and seed give the same new blocks. A new block does not change the anchor's output.
- A source never sees the anchor's parameters, only the inputs and outputs of its sites.
- `make_source` takes one row for each item of a batch. Only `make_shared_source` uses one row for all items.

    blocks_NX = new_blocks(spec, level=1, count=spec.blocks(1), generator=generator)
    with memory.using(make_source(spec, fetched_BX)): ...

Shapes: N blocks, B batch, X values of a block or a fetch.
"""

import torch
from torch import Generator, Tensor

from fedmem.memory.kinds import ActiveMemory, kind_named
from fedmem.memory.spec import MemorySpec


def new_blocks(spec: MemorySpec, level: int, count: int, generator: Generator) -> Tensor:
    """Return new blocks of a level, drawn with the generator.

    Args:
        spec: the shape of the blocks.
        level: counted from 1.
        count: number of blocks.
        generator: decides every random value.

    Returns:
        `[count, block_size]` float32.
    """
    kind, blocks_NX = kind_named(spec.kind), torch.empty(count, spec.block_size(level))
    at = 0
    for width in spec.widths[level - 1]:
        for segment, size in spec.segments.items():
            part_NX = blocks_NX[:, at : at + width * size]
            kind.start(segment, part_NX.unflatten(1, (width, size)), spec.shape, generator)
            at += width * size
    return blocks_NX


def new_fetch(spec: MemorySpec, generator: Generator) -> Tensor:
    """Return a new block of the size of a fetch. The generic block starts as one.

    Args:
        spec: the shape of the bank.
        generator: decides every random value.

    Returns:
        `[fetch_size]` float32.
    """
    return spec.join([new_blocks(spec, level, 1, generator) for level in range(1, spec.levels + 1)])[0]


def make_source(spec: MemorySpec, fetched_BX: Tensor) -> ActiveMemory:
    """Return fetches as a memory source, one for each item of a batch.

    Args:
        spec: the shape of the fetches.
        fetched_BX: `[batch, fetch_size]`; not copied.

    Raises:
        ValueError: the fetches are not of the spec's size.
    """
    if fetched_BX.dim() != 2 or fetched_BX.shape[1] != spec.fetch_size:
        raise ValueError(f"a fetch must be [batch, {spec.fetch_size}], got {tuple(fetched_BX.shape)}")
    return _source(spec, fetched_BX, len(fetched_BX))


def make_shared_source(spec: MemorySpec, fetched_X: Tensor) -> ActiveMemory:
    """Return one fetch as a memory source for every item of any batch.

    Args:
        spec: the shape of the fetch.
        fetched_X: `[fetch_size]`; not copied.

    Raises:
        ValueError: the fetch is not of the spec's size.
    """
    if fetched_X.shape != (spec.fetch_size,):
        raise ValueError(f"a fetch for all must be [{spec.fetch_size}], got {tuple(fetched_X.shape)}")
    return _source(spec, fetched_X[None], None)


def _source(spec: MemorySpec, fetched_BX: Tensor, items: int | None) -> ActiveMemory:
    return kind_named(spec.kind).source(spec.shape, torch.split(fetched_BX, spec.layer_sizes(), dim=1), items)
