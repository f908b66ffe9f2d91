"""Update blocks by lazy AdamW: only a fetched block changes moments, weights and step count [docs/method.md, §4].

Invariants
- A block that is not in a step keeps its parameters, moments and step count to the bit.
- For a fetched block the update equals that of `torch.optim.AdamW` with the step count of this block.

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
    """The constants of AdamW [docs/method.md, §4: betas (0.9, 0.95), memory decay 1e-3]."""

    lr: float
    weight_decay: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8


class Level(Protocol):
    """The blocks of one level with the state of their optimiser, in memory or on disk."""

    def read(self, ids_U: Tensor) -> Tensor:
        """Return copies of blocks.

        Args:
            ids_U: block ids, from 0.

        Returns:
            `[U, X]` float32.
        """

    def step(self, ids_U: Tensor, grads_UX: Tensor, settings: AdamWSettings, scale: float) -> None:
        """Apply gradients to blocks in place.

        Args:
            ids_U: distinct block ids.
            grads_UX: their gradients.
            settings: constants of AdamW.
            scale: factor on the learning rate, from the schedule.
        """


class LazyAdamW:
    """A level in memory: `blocks_NX`, and from the first step on two moments and a step count for each block.

    Args:
        blocks_NX: all blocks of the level, float32; they are changed in place.
    """

    def __init__(self, blocks_NX: Tensor) -> None:
        self.blocks = blocks_NX

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first and second moments `[N, X]` and the steps `[N]`, float32."""
        return torch.zeros_like(self.blocks), torch.zeros_like(self.blocks), torch.zeros(len(self.blocks))

    def read(self, ids_U: Tensor) -> Tensor:
        """Return copies of the blocks with these ids, `[U, X]`."""
        return self.blocks[ids_U]

    def step(self, ids_U: Tensor, grads_UX: Tensor, settings: AdamWSettings, scale: float = 1.0) -> None:
        """Apply gradients to distinct blocks in place, as `Level.step`."""
        rows = ids_U.tolist()
        blocks, first, second, steps = ([tensor[row] for row in rows] for tensor in (self.blocks, *self.moments))
        update(blocks, first, second, steps, list(grads_UX), settings, scale)


def update(
    blocks: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    grads: Sequence[Tensor],
    settings: AdamWSettings,
    scale: float,
) -> None:
    """Take one AdamW step for each block in place.

    Args:
        blocks: parameters, one tensor `[X]` for each block.
        first: first moments, one `[X]` for each block.
        second: second moments, one `[X]` for each block.
        steps: step counts, one 0-d float32 for each block; each is increased by 1.
        grads: gradients, one `[X]` for each block.
        settings: constants of AdamW.
        scale: factor on the learning rate.
    """
    if blocks:
        adamw(
            list(blocks), list(grads), list(first), list(second), [], list(steps), fused=True, amsgrad=False,
            maximize=False, beta1=settings.beta1, beta2=settings.beta2, eps=settings.eps, lr=settings.lr * scale,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
