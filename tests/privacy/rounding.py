"""The rounding attack: does a released value tell by its last bits which of two sums it came from?

An attacker knows both candidate sums, and the arithmetic. A value is impossible under a candidate if no noise gives it.
"""

import numpy as np
from numpy.typing import NDArray


def impossible(released: NDArray, cells: NDArray, spacing: float, divisor: float, dtype=np.float32) -> int:
    """The number of values that no integer noise on `cells` gives: decoded in float64, divided, rounded to `dtype`."""
    near = np.rint(released.astype(np.float64) * divisor / spacing).astype(np.int64)
    # A float32 stands for many cells; one of the nearest must decode to it, whatever the cells of the sum are.
    reached = [((cells + (near + step - cells)) * (spacing / divisor)).astype(dtype) == released for step in (-1, 0, 1)]
    return int((~np.any(reached, axis=0)).sum())


def floats_around(values: NDArray, reach: int) -> list[NDArray]:
    """float32 values and their neighbours on each side."""
    below = above = values.astype(np.float32)
    found = [below]
    for _ in range(reach):
        below, above = np.nextafter(below, np.float32(-np.inf)), np.nextafter(above, np.float32(np.inf))
        found += [below, above]
    return found


def impossible_float(released: NDArray, total: NDArray, divisor: float) -> int:
    """The number of values that no float32 noise gives, where noise and sum are added in float32 and then divided."""
    sums = floats_around(released.astype(np.float64) * divisor, 2)
    noises = [noise for s in sums for noise in floats_around(s.astype(np.float64) - total.astype(np.float64), 1)]
    reached = [((total.astype(np.float32) + noise) / np.float32(divisor)) == released for noise in noises]
    return int((~np.any(reached, axis=0)).sum())
