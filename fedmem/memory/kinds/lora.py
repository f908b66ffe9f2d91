"""LoRA memory: low-rank additions to linear maps of a layer, on QK, VO or FFN [docs/method.md, §2].

For the input u of a linear map a block adds `2 B A u`, with A (rows of length `in`) and B (columns of length `out`).
The paper's alpha of 2 is used as the factor itself. It is the same for every width, so levels combine by
concatenation, as in FFN memory.

Invariants
- A new block has B = 0, so it changes nothing until it is trained. A starts as Kaiming uniform.
- Sites that the anchor does not have (a gate in a plain MLP) have no rows.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from fedmem.memory.kinds.product import add_product, product

if TYPE_CHECKING:
    from fedmem.memory.spec import LayerShape

ALPHA = 2.0


def site_sizes(shape: "LayerShape") -> dict[str, tuple[int, int]]:
    """Return `(in, out)` of every linear map of a layer that LoRA can add to, by site.

    Args:
        shape: the geometry of the anchor's layers.
    """
    d, ffn, q, kv = shape.d_model, shape.ffn, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    gate = {"gate": (d, ffn)} if shape.gated else {}
    return {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d), **gate, "up": (d, ffn), "down": (ffn, d)}


class LoRA:
    """The kinds `lora_…`: rows `<site>.a` of A and `<site>.b` of B transposed, for each of `sites`.

    Args:
        sites: names of linear maps, as `site_sizes` has them.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)

    def segments(self, shape: "LayerShape") -> dict[str, int]:
        """Return the parts of a row: a row of A and a row of B transposed for each site of the anchor."""
        sizes = site_sizes(shape)
        return {f"{s}.{part}": sizes[s][part == "b"] for s in self.sites if s in sizes for part in "ab"}

    def start(self, segment: str, rows_NRX: Tensor, shape: "LayerShape", generator: Generator) -> None:
        """Draw A from Kaiming uniform (a = sqrt 5, as in LoRA), and set B = 0."""
        bound = 1 / math.sqrt(rows_NRX.shape[-1]) if segment.endswith(".a") else 0.0
        rows_NRX.uniform_(-bound, bound, generator=generator)

    def source(self, shape: "LayerShape", layers_BX: Sequence[Tensor], items: int | None) -> "LoRASource":
        """Return a source that adds to the output of each site's linear map."""
        return LoRASource(self.segments(shape), layers_BX, items)


class LoRASource:
    """LoRA rows in use: one block for each item of a batch, or one for all.

    Args:
        segments: the parts of a row, in their order, with the number of values of each.
        layers_BX: the values of the fetches, one `[B, X]` for each layer.
        items: size of the batch; None for one fetch that all items share.
    """

    def __init__(self, segments: dict[str, int], layers_BX: Sequence[Tensor], items: int | None) -> None:
        self.items, self.dtype = items, layers_BX[0].dtype
        self.sites = frozenset(name.split(".")[0] for name in segments)
        self.layers = [self._cut(segments, values_BX) for values_BX in layers_BX]

    @staticmethod
    def _cut(segments: dict[str, int], values_BX: Tensor) -> dict[str, Tensor]:
        rows = values_BX.shape[1] // sum(segments.values())
        parts = torch.split(values_BX, [rows * size for size in segments.values()], dim=1)
        named = zip(segments.items(), parts, strict=True)
        return {name: part.reshape(len(part), rows, size) for (name, size), part in named}

    def add(self, layer: int, site: str, hidden_BTD: Tensor, output_BTD: Tensor) -> Tensor:
        """Return the linear map's output with the low-rank part added."""
        a_BRX, b_BRX = self.layers[layer][f"{site}.a"], self.layers[layer][f"{site}.b"]
        if not a_BRX.shape[1]:
            return output_BTD
        return add_product(output_BTD, product(hidden_BTD, a_BRX.mT), b_BRX, ALPHA)
