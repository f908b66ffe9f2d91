"""Lazy AdamW: moments, weight decay and step count of a block move only when it is fetched [HM, §4, inferred].

Invariants
- A block that is not in a step keeps its parameters, moments and step count to the bit.
- On the fetched blocks an update equals that of `torch.optim.AdamW` with the block's own step count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamWSettings:
    """AdamW constants [HM, §4: betas (0.9, 0.95), memory decay 1e-3]."""

    lr: float
    weight_decay: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8


class LazyAdamW:
    """State of one level: `rows_NX` and, per block, two moments and a step count."""

    def __init__(self, rows_NX: Tensor, settings: AdamWSettings) -> None:
        self.rows, self.settings = rows_NX, settings
        self.first, self.second = torch.zeros_like(rows_NX), torch.zeros_like(rows_NX)
        self.steps = torch.zeros(len(rows_NX), dtype=torch.int64)

    def step(self, blocks_U: Tensor, grads_UX: Tensor, scale: float = 1.0) -> None:
        """Apply gradients to distinct blocks `blocks_U`; `scale` multiplies the learning rate (schedule)."""
        c, lr = self.settings, self.settings.lr * scale
        self.steps[blocks_U] += 1
        shape = (-1,) + (1,) * (grads_UX.dim() - 1)
        steps_U = self.steps[blocks_U].to(grads_UX.dtype).view(shape)
        first = self.first[blocks_U].mul_(c.beta1).add_(grads_UX, alpha=1 - c.beta1)
        second = self.second[blocks_U].mul_(c.beta2).addcmul_(grads_UX, grads_UX, value=1 - c.beta2)
        self.first[blocks_U], self.second[blocks_U] = first, second
        denominator = (second / (1 - c.beta2**steps_U)).sqrt_().add_(c.eps)
        rows = self.rows[blocks_U].mul_(1 - lr * c.weight_decay)
        self.rows[blocks_U] = rows.sub_(lr * first / (1 - c.beta1**steps_U) / denominator)
