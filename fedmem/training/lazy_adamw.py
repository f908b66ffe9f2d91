"""Lazy AdamW: moments, weight decay and step count of a block move only when it is fetched [docs/method.md, §4].

Invariants
- A block that is not in a step keeps its parameters, moments and step count to the bit.
- On the fetched blocks an update equals that of `torch.optim.AdamW` with the block's own step count.

Shapes: N blocks of a level, U distinct blocks of a batch, X values of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw


@dataclass(frozen=True)
class AdamWSettings:
    """AdamW constants [docs/method.md, §4: betas (0.9, 0.95), memory decay 1e-3]."""

    lr: float
    weight_decay: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8


class Level(Protocol):
    """Blocks of one level with the state of their optimiser, in memory or on disk."""

    def read(self, ids_U: Tensor) -> Tensor:
        """Copies of these blocks, `[U, X]`."""

    def step(self, ids_U: Tensor, grads_UX: Tensor, settings: AdamWSettings, scale: float) -> None:
        """Apply gradients to distinct blocks in place; `scale` multiplies the learning rate (schedule)."""


class LazyAdamW:
    """A level in memory: `blocks_NX` and, from the first step on, two moments and a step count per block."""

    def __init__(self, blocks_NX: Tensor) -> None:
        self.blocks = blocks_NX

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """First and second moments `[N, X]`, and steps `[N]`, float32."""
        return torch.zeros_like(self.blocks), torch.zeros_like(self.blocks), torch.zeros(len(self.blocks))

    def read(self, ids_U: Tensor) -> Tensor:
        """Copies of these blocks, `[U, X]`."""
        return self.blocks[ids_U]

    def step(self, ids_U: Tensor, grads_UX: Tensor, settings: AdamWSettings, scale: float = 1.0) -> None:
        """Apply gradients to distinct blocks in place; `scale` multiplies the learning rate (schedule)."""
        rows = ids_U.tolist()
        blocks, first, second, steps = ([tensor[row] for row in rows] for tensor in (self.blocks, *self.moments))
        update(blocks, first, second, steps, list(grads_UX), settings, scale)


def update(
    blocks: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    grads: Sequence[Tensor],
    c: AdamWSettings,
    scale: float,
) -> None:
    """One AdamW step of each block in place, each with its own step count (0-d float32, counted up here)."""
    if blocks:
        adamw(
            list(blocks), list(grads), list(first), list(second), [], list(steps), fused=True, amsgrad=False,
            maximize=False, beta1=c.beta1, beta2=c.beta2, eps=c.eps, lr=c.lr * scale, weight_decay=c.weight_decay,
        )  # fmt: skip
