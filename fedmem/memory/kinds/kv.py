"""KV memory: learned keys and values beside each layer's attention [docs/method.md, §2].

Every query attends to the r learned keys of its head, without causal mask and without positions. This attention has
its own softmax. The result is added to the heads' outputs before the output projection. The query is the output of
the query projection, before any rotation or norm.

Invariants
- A new block has V = 0, so it changes nothing until it is trained.
- With grouped queries a group shares its learned keys and values, as it shares those of the anchor.
"""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Generator, Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from fedmem.memory.spec import LayerShape


class KV:
    """The kind `kv`: rows of keys and of values for all key-value heads."""

    def segments(self, shape: "LayerShape") -> dict[str, int]:
        """Return the two parts of a row: one key and one value for each key-value head."""
        return dict.fromkeys(("key", "value"), shape.kv_heads * shape.head_dim)

    def start(self, segment: str, rows_NRX: Tensor, shape: "LayerShape", generator: Generator) -> None:
        """Draw the keys from a standard normal, so that queries tell them apart, and set V = 0 [docs/method.md, §2]."""
        rows_NRX.normal_(generator=generator) if segment == "key" else rows_NRX.zero_()

    def source(self, shape: "LayerShape", layers_BX: Sequence[Tensor], items: int | None) -> "KVSource":
        """Return a source with keys and values for each layer's attention."""
        return KVSource(shape, layers_BX, items)


class _Lookups(threading.local):
    """The attention results by layer, from the site `q` to the site `heads`. Each thread has its own."""

    def __init__(self) -> None:
        self.layers: dict[int, Tensor] = {}


class KVSource:
    """Learned keys and values in use: one block for each item of a batch, or one for all.

    Args:
        shape: the geometry of the anchor's layers.
        layers_BX: the values of the fetches, one `[B, X]` for each layer.
        items: size of the batch; None for one fetch that all items share.
    """

    sites = frozenset({"q", "heads"})

    def __init__(self, shape: "LayerShape", layers_BX: Sequence[Tensor], items: int | None) -> None:
        self.shape, self.items, self.dtype = shape, items, layers_BX[0].dtype
        self.layers = [self._cut(values_BX) for values_BX in layers_BX]
        self._lookups = _Lookups()

    def _cut(self, values_BX: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each `[B, heads, R, head_dim]`."""
        kv, size = self.shape.kv_heads, self.shape.head_dim
        both = values_BX.view(len(values_BX), 2, -1, kv, size).transpose(2, 3)
        both = both.repeat_interleave(self.shape.heads // kv, dim=2)
        return both[:, 0], both[:, 1]

    def add(self, layer: int, site: str, hidden_BTD: Tensor, output_BTD: Tensor) -> Tensor:
        """At `q`, compute and keep the attention to the learned keys. At `heads`, return the output with it added."""
        lookups = self._lookups.layers
        if site == "heads":
            return output_BTD + lookups.pop(layer) if layer in lookups else output_BTD
        key_BHRd, value_BHRd = self.layers[layer]
        if key_BHRd.shape[2]:
            batch, tokens = output_BTD.shape[:2]
            query_BHTd = output_BTD.view(batch, tokens, self.shape.heads, -1).transpose(1, 2)
            everyone = (batch, -1, -1, -1)
            values_BHTd = F.scaled_dot_product_attention(
                query_BHTd, key_BHRd.expand(everyone), value_BHRd.expand(everyone)
            )
            lookups[layer] = values_BHTd.transpose(1, 2).reshape(batch, tokens, -1)
        return output_BTD
