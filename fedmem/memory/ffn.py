"""FFN memory: a block widens the inner dimension of every layer's SwiGLU [HM, §3].

For the normed input u of a layer's MLP, a block adds `M3[silu(M1 u) * (M2 u)]`: no gate, no scale, no norm.
Blocks of several levels combine by concatenating rows, which equals their sum.

Invariants
- A block is `rows_L3RD`: for each layer its gate (M1), up (M2) and down (M3 transposed) rows, float32.
- A new block has M3 = 0: it changes nothing, to the last bit of the sum, until it is trained.
- Sources never see the anchor; they map `(layer, hidden_BTD)` to an addend of the same shape.

Shapes: B sequences, T tokens, L layers, R width (inner rows), D model width, 3 = gate, up, down.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02


def new_rows(layers: int, width: int, d_model: int, generator: torch.Generator) -> Tensor:
    """A fresh block, `rows_L3RD`: M1 and M2 truncated normal (std 0.02, cut at 2 std), M3 = 0 [HM, §3]."""
    rows_L3RD = torch.zeros(layers, 3, width, d_model)
    nn.init.trunc_normal_(rows_L3RD[:, :2], std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD, generator=generator)
    return rows_L3RD


class RowsSource:
    """Fetched rows as a memory source: one block per batch item, or one for all.

    `rows_BL3RD` has B equal to the batch, or 1 (then one matrix product serves the whole batch).
    """

    def __init__(self, rows_BL3RD: Tensor) -> None:
        if rows_BL3RD.dim() != 5 or rows_BL3RD.shape[2] != 3:
            raise ValueError(f"rows must be [batch, layers, 3, width, d_model], got {tuple(rows_BL3RD.shape)}")
        self.layers = rows_BL3RD.unbind(1)

    def __call__(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        gate_BRD, up_BRD, down_BRD = self.layers[layer].unbind(1)
        if gate_BRD.shape[0] == 1:
            inner_BTR = F.silu(hidden_BTD @ gate_BRD[0].T) * (hidden_BTD @ up_BRD[0].T)
            return inner_BTR @ down_BRD[0]
        inner_BTR = F.silu(hidden_BTD @ gate_BRD.mT) * (hidden_BTD @ up_BRD.mT)
        return inner_BTR @ down_BRD


class _Layer(nn.Module):
    """One layer of a block as three linear maps, so that per-sample gradient hooks find them."""

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
    """One trainable block as a module, and as a memory source.

    >>> block = BlockModule.new(layers=2, d_model=8, width=4, seed=0)
    >>> block.rows().shape
    torch.Size([2, 3, 4, 8])
    >>> bool(block(0, torch.ones(1, 3, 8)).abs().sum() == 0)
    True
    """

    def __init__(self, rows_L3RD: Tensor) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(rows_3RD) for rows_3RD in rows_L3RD)

    @classmethod
    def new(cls, layers: int, d_model: int, width: int, seed: int) -> "BlockModule":
        """A fresh block with M3 = 0, its M1 and M2 drawn from `seed`."""
        return cls(new_rows(layers, width, d_model, torch.Generator().manual_seed(seed)))

    @classmethod
    def from_rows(cls, rows_L3RD: Tensor) -> "BlockModule":
        """A block with these rows (copied)."""
        return cls(rows_L3RD)

    def rows(self) -> Tensor:
        """The parameters as `rows_L3RD`, a detached copy."""
        with torch.no_grad():
            return torch.stack(
                [torch.stack([m.gate.weight, m.up.weight, m.down.weight.T]) for m in self.layers]  # type: ignore[union-attr,list-item]
            ).clone()

    def forward(self, layer: int, hidden_BTD: Tensor) -> Tensor:
        out: Tensor = self.layers[layer](hidden_BTD)
        return out
