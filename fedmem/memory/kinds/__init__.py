"""Kinds of memory: what a row of a block holds, how it starts, and what it adds to a layer [docs/method.md, §2].

A new kind is one file with a class of this Protocol, and one line in `kind_named`.

Shapes: B batch (or 1 for all), T tokens, R rows (width), X values of one layer of a fetch, D model width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Generator, Tensor

from fedmem.errors import UsageError

if TYPE_CHECKING:
    from fedmem.memory.spec import LayerShape


class ActiveMemory(Protocol):
    """Memory in use: changes the output of the sites that it names (`fedmem.memory.sites`).

    `items` is the size of the batch that it has rows for; None where one row is for all.
    """

    sites: frozenset[str]
    items: int | None

    def add(self, layer: int, site: str, hidden_BTD: Tensor, output_BTD: Tensor) -> Tensor:
        """The site's output with this memory added; `hidden_BTD` is what the site's module was given."""


class MemoryKind(Protocol):
    """One kind of memory."""

    def segments(self, shape: "LayerShape") -> dict[str, int]:
        """Parts of a row, in their order, with the number of values of each."""

    def start(self, segment: str, rows_NRX: Tensor, shape: "LayerShape", generator: Generator) -> None:
        """Fill one segment of new blocks in place; a new block changes nothing."""

    def source(self, shape: "LayerShape", layers_BX: Sequence[Tensor], items: int | None) -> ActiveMemory:
        """A memory source over fetches, cut by layer, for so many items; B is 1 where `items` is None."""


def kind_named(name: str) -> MemoryKind:
    """The kind of this name. Raises UsageError for one that does not exist."""
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
