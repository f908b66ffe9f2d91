"""Public settings of training on public text, and what a phase moves.

>>> Settings(steps=100, batch=16, lr=1e-3, warmup=10).scale(4)
0.498...
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """A phase of training: `lr` falls to `lr * final` along a cosine after a linear warm-up; `batch` in packed rows.

    `eps` is what AdamW adds to the root of its second moment. A short run needs a larger one: the second moment has
    seen few batches, and what is not in them would move at the full rate.
    `bf16` runs the forward pass under autocast; parameters, moments and sums stay float32.
    """

    steps: int
    batch: int
    lr: float
    final: float = 0.1
    warmup: int = 10
    weight_decay: float = 0.05
    memory_lr: float = 0.0
    memory_weight_decay: float = 1e-3
    eps: float = 1e-8
    bf16: bool = False

    def scale(self, step: int) -> float:
        """Factor on the learning rates at `step`, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps))))


@dataclass(frozen=True)
class Trained:
    """What a phase moves: the anchor, which levels (counted from 1), and the generic block."""

    anchor: bool = True
    levels: frozenset[int] = frozenset()
    generic: bool = True
