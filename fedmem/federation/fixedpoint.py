"""Updates as integers on a public grid: quantise, clip, sum, decode (docs/design.md, §7 and §10).

Invariants
- The grid step is a power of two that depends on the public clip norm alone, so encoding needs no negotiation.
- Rounding is toward zero: no coordinate ever grows, so clipping after decoding can only shrink a norm.
- Sums are int64, hence exact: their order has no effect (I9). A number of devices whose sum could overflow is refused.

>>> import numpy as np
>>> step = grid_step(1.0)
>>> clipped = clip_grid({"w": quantise(np.array([3.0, 4.0], np.float32), step)}, clip=1.0)
>>> decode(clipped["w"], step).round(4).tolist()
[0.6, 0.8]
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import Refused

Grid = dict[str, NDArray[np.int32]]
Sums = dict[str, NDArray[np.int64]]

# clip / step lies in [2^23, 2^24): float32's own precision, and 2^38 devices fit an int64 sum.
_CLIP_BITS = 23
_SUM_LIMIT = 2**62


def grid_step(clip: float) -> float:
    """Return the width of one grid cell for a public clip norm: a power of two, at most clip * 2^-23.

    Args:
        clip: the clip norm.

    Raises:
        Refused: the clip norm is not a finite number above 0, or its step is not a normal float64.
    """
    step = math.ldexp(1.0, math.frexp(clip)[1] - 1 - _CLIP_BITS) if 0 < clip < math.inf else 0.0
    if not (step and math.isfinite(1 / step)):
        raise Refused("A clip norm is a finite number above 0 that has a grid; nothing was computed. Give another one.")
    return step


def cells(clip: float) -> int:
    """Return the clip norm in grid cells, rounded down. It bounds the absolute value of every clipped coordinate.

    Args:
        clip: the clip norm.

    Raises:
        Refused: as `grid_step`.
    """
    return math.floor(clip / grid_step(clip))


def quantise(values: NDArray[np.float32], step: float) -> NDArray[np.int32]:
    """Return `values` rounded toward zero onto the grid; same shape, int32.

    | value | result |
    |---|---|
    | inside ±2^31 cells | trunc(value / step), exact: the step is a power of two |
    | larger | OverflowError |
    | NaN, inf | ValueError |
    | empty | empty |

    Args:
        values: an array of any shape.
        step: width of a grid cell, a power of two.

    Raises:
        OverflowError, ValueError: as the table says.
    """
    scaled = np.divide(values, step, dtype=np.float64)
    np.trunc(scaled, out=scaled)
    # A NaN anywhere is the maximum.
    largest = max(float(scaled.max()), -float(scaled.min())) if scaled.size else 0.0
    if not math.isfinite(largest):
        raise ValueError("A value is not finite; it has no place on the grid.")
    if largest >= 2**31:
        raise OverflowError("A value lies outside the int32 grid; clip before quantising.")
    return scaled.astype(np.int32)


def decode(grid: NDArray[np.int32] | NDArray[np.int64], step: float) -> NDArray[np.float64]:
    """Return the numbers that grid cells stand for; float64, same shape.

    Args:
        grid: an array of grid cells.
        step: width of a grid cell.
    """
    return grid.astype(np.float64) * step


def _squares(grid: Mapping[str, NDArray[np.int32]]) -> float:
    # Not a BLAS dot product: its last bits depend on the number of threads, and the scale is computed from them.
    return math.fsum(float(np.square(part.astype(np.float64)).sum()) for part in grid.values())


def _surely_within(grid: Mapping[str, NDArray[np.int32]], limit: int) -> bool:
    """Return True only for a norm below `limit`. The error of the dot product is far below one part in 10^6."""
    flat = (part.astype(np.float64).ravel() for part in grid.values())
    return math.fsum(float(np.dot(part, part)) for part in flat) < limit * limit * (1 - 1e-6)


def _exact_squares(grid: Mapping[str, NDArray[np.int32]]) -> int:
    """Return the exact sum of squares. It has to fit an int64; `clip_grid` ensures that before the call."""
    flat = (part.astype(np.int64).ravel() for part in grid.values())
    return sum(int(np.dot(part, part)) for part in flat)


def clip_grid(grid: Mapping[str, NDArray[np.int32]], clip: float) -> Grid:
    """Return the update, scaled as a whole so that its decoded L2 norm is at most `clip`.

    Guarantees: norm(decode(result)) <= clip holds in exact integer arithmetic, for every input. An update
    within the norm is returned unchanged. The noise is scaled to this sensitivity
    (Abadi et al. 2016, §3.1, with one device as the unit).

    | input | result |
    |---|---|
    | norm <= clip | the same cells |
    | norm > clip | scaled, then rounded toward zero |
    | zeros, empty | zeros, empty |

    Args:
        grid: name -> array of grid cells; the update of one device.
        clip: the clip norm, finite and above 0.

    Raises:
        Refused: as `grid_step`.
    """
    limit = cells(clip)
    kept = {name: np.asarray(part, np.int32) for name, part in grid.items()}
    if _surely_within(kept, limit):
        return kept
    norm = math.sqrt(_squares(kept))
    factor = 1.0 if norm <= limit else limit / norm
    # Float rounding may leave the scaled norm slightly too large: shrink until it fits in integer arithmetic.
    while factor < 1.0 or _exact_squares(kept) > limit * limit:
        kept = {name: np.trunc(part * min(factor, 1 - 2**-20)).astype(np.int32) for name, part in kept.items()}
        factor = 1.0
    return kept


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> Grid:
    """Return an update of zeros: name -> int32 array.

    Args:
        shapes: name -> shape of the federated parameters.
    """
    return {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}


def empty_sums(shapes: Mapping[str, tuple[int, ...]]) -> Sums:
    """Return int64 zeros, to which a round's updates are added.

    Args:
        shapes: name -> shape of the federated parameters.
    """
    return {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}


def check_headroom(devices: int, clip: float, noise: int = 0) -> None:
    """Check that the sum of a round stays in the int64 range.

    Args:
        devices: the greatest number of updates.
        clip: the clip norm.
        noise: the greatest noise in a coordinate, in cells.

    Raises:
        Refused: the sum could leave the int64 range.
    """
    if devices * cells(clip) + noise >= _SUM_LIMIT:
        raise Refused("So many devices could overflow the integers of the sum; declare a smaller population.")


def add(sums: Sums, update: Mapping[str, NDArray[np.int32]]) -> None:
    """Add one clipped update to `sums` in place. Sums are exact, so the order of calls has no effect.

    Args:
        sums: name -> sum in grid cells, int64; it is changed.
        update: name -> clipped update, int32, of the same shapes.
    """
    for name, total in sums.items():
        total += update[name]
