"""Clipping and the exact noise as they are defined: what faster ways are held to.

Shapes: X values, K cells.
"""

import math
from collections.abc import Iterable, Sequence

import mpmath
import numpy as np
import torch
from torch import Tensor

from fedmem.privacy import rounded_gaussian as noise
from fedmem.privacy.clip import CellSum
from fedmem.privacy.grid import Grid

DIGITS = 60  # of the exact probabilities, which lie as far out as 32 standard deviations


def clipped(grads: Iterable[Tensor], grid: Grid) -> Tensor:
    """The sum of gradients `[X]`, each clipped and truncated by Python's own integers and floats; int64."""
    total = None
    for grad_X in grads:
        values = [float(value) for value in grad_X]
        norm = math.hypot(*values) if all(map(math.isfinite, values)) else math.inf
        scale = 0.0 if norm > 1e30 else min(1.0, grid.clip / norm if norm else 1.0) / grid.spacing
        cells = [math.trunc(value * scale) if scale else 0 for value in values]
        total = cells if total is None else [a + b for a, b in zip(total, cells, strict=True)]
    return torch.tensor(total, dtype=torch.int64)


def length(cells_X: Tensor) -> int:
    """The exact squared norm of integers."""
    return sum(int(cell) ** 2 for cell in cells_X.tolist())


def fresh(grads: Sequence[Tensor], grid: Grid) -> Tensor:
    """The sum that the library makes of these gradients."""
    total = CellSum.zero(len(grads[0]), grid)
    for grad_X in grads:
        total.add(grad_X)
    return total.cells_X


def log_ratios(std: float, cells: Iterable[int]) -> list[float]:
    """log(drawn / assumed) of cells at least 0, less that of the first one: the sampler's table against 60 digits."""
    with mpmath.workdps(DIGITS):
        ratios = [_log_ratio(noise._table(std), mpmath.mpf(std), cell) for cell in cells]
        return [float(ratio - ratios[0]) for ratio in ratios]


def _log_ratio(table: noise._Table, std: mpmath.mpf, cell: int) -> mpmath.mpf:
    number, offset = cell >> table.bits, cell & ((1 << table.bits) - 1)
    chance = float(noise._acceptance(table, np.array([number], np.uint64), np.array([offset], np.uint64))[0])
    columns = int(np.count_nonzero(table.bin_of == number))
    upper, lower = (mpmath.erfc(mpmath.mpf(edge) / std / mpmath.sqrt(2)) for edge in (cell, cell + 1))
    return mpmath.log(mpmath.mpf(chance) * columns / (upper - lower))
