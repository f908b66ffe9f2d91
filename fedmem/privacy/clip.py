"""Clip the gradient of each record, truncate it onto a public grid, and sum over records in integers.

Invariants
- The gradient of a record is the sum over all its sequences, clipped once. A single sequence is never clipped.
- Nothing is averaged over the sampled records: their number has no effect.
- A record adds an integer vector to the sum, and nothing else. Its norm is at most the clip norm in cells, exactly. The
  vector is a function of the record's gradient alone, so the order of records has no effect.

Shapes: X values of the block.

>>> grid = Grid.fitting(clip=0.5, noise_multiplier=1.0, values=2, records=100)
>>> total = CellSum.zero(2, grid)
>>> for grad in ([3.0, 0.0], [0.0, -0.25]):
...     total.add(torch.tensor(grad))
>>> [round(cells * grid.spacing, 4) for cells in total.cells_X.tolist()]
[0.5, -0.25]
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmem.privacy.grid import Grid

# Above this a gradient is unusable; no useful one is near it. It also keeps float64 squares finite.
NORM_LIMIT = 1e30
# Covers all float64 rounding between a gradient and its cells: below 2^-22 for a block of 2^26 values (`CellSum.add`).
INSIDE = 1 - 2.0**-20
_CHUNK = 1 << 16  # values in a pass: their float64 copies stay in the cache


@dataclass(frozen=True)
class CellSum:
    """A sum over records in cells of a grid; `add` changes it in place.

    Attributes:
        cells_X: the sum in cells, `[X]`, int64.
        grid: the public grid.
    """

    cells_X: Tensor
    grid: Grid
    _scratch: tuple[NDArray[Any], ...] = field(default_factory=lambda: _new_scratch(), repr=False)

    @classmethod
    def zero(cls, values: int, grid: Grid) -> "CellSum":
        """Return the sum over no records.

        Args:
            values: number of values of the block.
            grid: the public grid of the sum.
        """
        return cls(torch.zeros(values, dtype=torch.int64), grid)

    def add(self, grad_X: Tensor) -> None:
        """Clip the gradient of one record, truncate it towards zero, and add its cells.

        Guarantees: the L2 norm of the added vector is at most `grid.cells`, in exact arithmetic, for every input. With
        u = 2^-53 and X <= 2^26: the computed norm is at least (1 - X u) of the true one; factor and products are off by
        at most 4 u; truncation never lengthens. INSIDE is smaller than what these leave.

        | gradient | counts as |
        |---|---|
        | norm <= clip | itself, each value truncated to a cell |
        | norm above clip | scaled to the clip norm, then truncated |
        | any NaN or infinity, or a norm above 1e30 | zero |
        | zero | zero |

        Args:
            grad_X: the gradient, float32 or float64, contiguous.
        """
        values_X, cells_X = grad_X.detach().numpy(), self.cells_X.numpy()
        norm = math.sqrt(self._squares(values_X))
        if not norm <= NORM_LIMIT:  # False for NaN
            return
        scale = min(1 / self.grid.spacing, self.grid.cells * INSIDE / norm) if norm else 0.0
        wide, whole = self._scratch
        for start in range(0, len(values_X), _CHUNK):
            part, sums = values_X[start : start + _CHUNK], cells_X[start : start + _CHUNK]
            np.multiply(part, scale, out=wide[: len(part)], dtype=np.float64)
            np.copyto(whole[: len(part)], wide[: len(part)], casting="unsafe")  # towards zero
            np.add(sums, whole[: len(part)], out=sums)

    def _squares(self, values_X: NDArray[Any]) -> float:
        """Return the sum of squares, in float64. Squares of float32 values neither overflow nor vanish there."""
        total, (wide, _) = 0.0, self._scratch
        for start in range(0, len(values_X), _CHUNK):
            part = values_X[start : start + _CHUNK]
            np.copyto(wide[: len(part)], part)
            total += float(np.dot(wide[: len(part)], wide[: len(part)]))
        return total


def _new_scratch() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return np.empty(_CHUNK), np.empty(_CHUNK, np.int64)
