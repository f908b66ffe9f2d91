"""Kinds of memory: the content of a row, its initial values, and its effect on a layer [docs/method.md, §2].

A new kind is one file with a class of this Protocol, and one line in `kind_named`.

Shapes: B batch (or 1 where one row is for all items), T tokens, R rows (width), X values of one layer of a fetch,
D model width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Generator, Tensor

from fedmem.errors import UsageError

if TYPE_CHECKING:
    from fedmem.memory.spec import LayerShape


class ActiveMemory(Protocol):
    """Memory in use, which changes the output of its `sites` (`fedmem.memory.sites`).

    `items` is the size of the batch that it has rows for, or None if one row is for all items. `dtype` is that of the
    rows, in which `add` takes its inputs.
    """

    sites: frozenset[str]
    items: int | None
    dtype: torch.dtype

    def add(self, layer: int, site: str, hidden_BTD: Tensor, output_BTD: Tensor) -> Tensor:
        """Return the site's output with this memory added.

        Args:
            layer: number of the layer, from 0.
            site: one of `sites`.
            hidden_BTD: the input of the site's module.
            output_BTD: the output of the site; it is not changed.

        Returns:
            The new output, of the same shape.
        """


class MemoryKind(Protocol):
    """One kind of memory."""

    def segments(self, shape: "LayerShape") -> dict[str, int]:
        """Return the parts of a row, in their order, with the number of values of each.

        Args:
            shape: the geometry of the anchor's layers.
        """

    def start(self, segment: str, rows_NRX: Tensor, shape: "LayerShape", generator: Generator) -> None:
        """Write the initial values of one segment of new blocks. A new block does not change the anchor's output.

        Args:
            segment: one of `segments`.
            rows_NRX: the rows of this segment, changed in place.
            shape: the geometry of the anchor's layers.
            generator: decides every random value.
        """

    def source(self, shape: "LayerShape", layers_BX: Sequence[Tensor], items: int | None) -> ActiveMemory:
        """Return fetches, split by layer, as a memory source.

        Args:
            shape: the geometry of the anchor's layers.
            layers_BX: the values of a batch of fetches, one `[B, X]` for each layer; B is 1 if `items` is None.
            items: size of the batch; None for one fetch that all items share.
        """


def kind_named(name: str) -> MemoryKind:
    """Return the kind of memory with this name.

    Args:
        name: `ffn`, `lora_ffn`, `lora_qk`, `lora_vo` or `kv`.

    Raises:
        UsageError: there is no such kind.
    """
    from fedmem.memory.kinds.ffn import FFN
    from fedmem.memory.kinds.kv import KV
    from fedmem.memory.kinds.lora import LoRA

    kinds: dict[str, MemoryKind] = {
        "ffn": FFN(),
        "lora_ffn": LoRA(("gate", "up", "down")),
        "lora_qk": LoRA(("q", "k")),
        "lora_vo": LoRA(("v", "o")),
        "kv": KV(),
    }
    if name not in kinds:
        raise UsageError(f"Unknown kind of memory {name!r}; choose one of {', '.join(kinds)}.")
    return kinds[name]
