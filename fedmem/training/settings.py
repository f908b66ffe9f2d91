"""The public settings of a training on public text, and the parts that a phase trains.

>>> Settings(steps=100, batch=16, lr=1e-3, warmup=10).scale(4)
0.498...
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The settings of a phase of training.

    Attributes:
        steps: number of steps.
        batch: packed rows in a batch.
        lr: learning rate of the anchor. It rises linearly over `warmup` steps and falls along a cosine.
        final: the cosine ends at `lr * final`.
        warmup: steps of the warm-up.
        weight_decay: weight decay of the anchor.
        memory_lr: learning rate of the blocks, with the same schedule.
        memory_weight_decay: weight decay of the blocks.
        eps: AdamW adds it to the root of the second moment. A short run needs a larger value: its second moment has
            seen few batches, and values that do not occur in them would move at the full rate.
        bf16: run the forward pass under autocast; parameters, moments and sums stay float32.
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
        """Return the factor on the learning rates at a step.

        Args:
            step: counted from 0.
        """
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps))))


@dataclass(frozen=True)
class TrainedParts:
    """The parts that a phase trains: the anchor, a set of levels (counted from 1), and the generic block."""

    anchor: bool = True
    levels: frozenset[int] = frozenset()
    generic: bool = True
