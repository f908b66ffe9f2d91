"""FFN memory: a block widens the inner dimension of every layer's MLP [docs/method.md, §2].

For the input u of a layer's MLP a block adds `M3[silu(M1 u) * (M2 u)]`: no gate, no scale, no norm. If the anchor's
MLP has no gate, a block adds `M3[act(M1 u)]`. The activation is always that of the anchor, so a fetch can be
materialised as a wider MLP.

Invariants
- A new block has M3 = 0, so it changes nothing until it is trained.
- The rows of one segment are contiguous, so gate and up are one matrix product.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Generator, Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from fedmem.memory.kinds.product import add_product, product

if TYPE_CHECKING:
    from fedmem.memory.spec import LayerShape

INIT_STD = 0.02


class FFN:
    """The kind `ffn`: rows of M1 (gate), M2 (up) and M3 transposed (down)."""

    def segments(self, shape: "LayerShape") -> dict[str, int]:
        """Return the matrices of a row; a row of each has as many values as the model width."""
        return dict.fromkeys(("gate", "up", "down") if shape.gated else ("up", "down"), shape.d_model)

    def start(self, segment: str, rows_NRX: Tensor, shape: "LayerShape", generator: Generator) -> None:
        """Draw M1 and M2 from a truncated normal (std 0.02, cut at 2 std), and set M3 = 0 [docs/method.md, §2]."""
        if segment == "down":
            rows_NRX.zero_()
        else:
            nn.init.trunc_normal_(rows_NRX, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD, generator=generator)

    def source(self, shape: "LayerShape", layers_BX: Sequence[Tensor], items: int | None) -> "FFNSource":
        """Return a source that adds rows to the output of each layer's MLP."""
        return FFNSource(shape, layers_BX, items)


class FFNSource:
    """FFN rows in use: one block for each item of a batch, or one for all.

    Args:
        shape: the geometry of the anchor's layers.
        layers_BX: the values of the fetches, one `[B, X]` for each layer.
        items: size of the batch; None for one fetch that all items share.
    """

    sites = frozenset({"mlp"})

    def __init__(self, shape: "LayerShape", layers_BX: Sequence[Tensor], items: int | None) -> None:
        self.items, self.dtype = items, layers_BX[0].dtype
        self.gated = shape.gated
        self.activation = F.silu if shape.activation == "silu" else ACT2FN[shape.activation]
        self.layers = [self._cut(values_BX, shape.d_model) for values_BX in layers_BX]

    def _cut(self, values_BX: Tensor, d_model: int) -> tuple[Tensor, Tensor]:
        """Return gate and up rows, joined and transposed, `[B, D, 2 R]`, and down rows, `[B, R, D]`.

        Without a gate the first are the up rows alone, `[B, D, R]`.
        """
        rows_BRD = values_BX.view(len(values_BX), -1, d_model)
        inner = rows_BRD.shape[1] * (2 if self.gated else 1) // (3 if self.gated else 2)
        return rows_BRD[:, :inner].mT, rows_BRD[:, inner:]

    def add(self, layer: int, site: str, hidden_BTD: Tensor, output_BTD: Tensor) -> Tensor:
        """Return the MLP's output with the contribution of the rows added."""
        inner_BDR, down_BRD = self.layers[layer]
        rows = down_BRD.shape[1]
        if not rows:
            return output_BTD
        return add_product(output_BTD, self._act(product(hidden_BTD, inner_BDR), rows), down_BRD)

    def _act(self, inner: Tensor, rows: int) -> Tensor:
        if not self.gated:
            out: Tensor = self.activation(inner)
            return out
        gate, up = inner.split_with_sizes((rows, rows), -1)
        out = self.activation(gate) * up
        return out
