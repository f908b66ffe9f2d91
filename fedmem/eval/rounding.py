"""The rounding attack: tell by the last bits of a release which of two sums it was computed from.

Not every float32 can be reached from every float32 sum by adding float32 noise. So a value that one sum cannot give
excludes it, whatever the noise is (Mironov 2012; Haney et al. 2022). Noise on a grid has no such values.

Invariants
- The attacker knows both sums, all public settings, and the arithmetic from a noisy sum to the released values. It does
  not know the noise, and not which of the sums is true.
- The guess uses last bits only. It never uses how likely a value is, because the claimed epsilon allows that.

Shapes: X values.

    post = lambda update_X: update_X                      # the update itself is released
    release = ReleasedValues(update_X, post, 0 * update_X, scale=grid.spacing / plan.divisor, std=grid.std(sigma))
    attack(release, (cells_without_X, cells_with_X)).guess
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest  # type: ignore[import-untyped]

from fedmem.privacy.rounded_gaussian import REACH

Floats = NDArray[np.float32]
Cells = NDArray[np.int64]
MOST_FLOATS = 32
"""A released value is skipped, as one that tells nothing, if more updates than this may give it."""
_LOW_BITS = 4


@dataclass(frozen=True)
class ReleasedValues:
    """Released values, and how an update becomes them.

    Attributes:
        values_X: the released values.
        post: computes released values from an update `[X]`, each value from its own.
        error_X: each value of `post` is within half of this of a function that increases.
        scale: the number in an update that a cell of the noisy sum stands for.
        std: std of the noise in cells.
    """

    values_X: Floats
    post: Callable[[Floats], Floats]
    error_X: Floats
    scale: float
    std: float


@dataclass(frozen=True)
class Preimages:
    """The updates that may give a released value: for each value a range of float32 numbers that holds them all.

    Attributes:
        low_X: the least one, counted in float32 numbers from zero.
        high_X: the greatest one.
    """

    low_X: NDArray[np.int64]
    high_X: NDArray[np.int64]

    @property
    def is_narrow_X(self) -> NDArray[np.bool_]:
        """True where at most MOST_FLOATS updates give the value."""
        return self.high_X - self.low_X <= MOST_FLOATS


def find_preimages(release: ReleasedValues, bound: float) -> Preimages:
    """Return the updates of at most `bound` that may give each released value, by bisection.

    Args:
        release: the release.
        bound: no update is greater than this.
    """
    least_X, most_X = release.values_X - release.error_X, release.values_X + release.error_X
    low_X = _bisect(release, bound, lambda values_X: values_X >= least_X)
    return Preimages(low_X, _bisect(release, bound, lambda values_X: values_X > most_X) - 1)


def _bisect(release: ReleasedValues, bound: float, is_past: Callable[[Floats], NDArray[np.bool_]]) -> NDArray[np.int64]:
    """Return the first float32 number whose released value is past a threshold, counted from zero."""
    last = _position(np.full(release.values_X.shape, bound, np.float32))
    below_X, past_X = -last - 1, last + 1
    while (past_X - below_X).max() > 1:
        middle_X = (below_X + past_X) // 2
        is_past_X = is_past(release.post(_number(middle_X)))
        below_X, past_X = np.where(is_past_X, below_X, middle_X), np.where(is_past_X, middle_X, past_X)
    return past_X


def _position(numbers: Floats) -> NDArray[np.int64]:
    """Return the place of float32 numbers in their order, counted from zero. Both zeros have place 0."""
    bits = numbers.view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _number(positions: NDArray[np.int64]) -> Floats:
    """Return the float32 numbers at places of their order."""
    magnitudes = np.abs(positions).astype(np.int32).view(np.float32)
    return np.where(positions < 0, -magnitudes, magnitudes)


def impossible_on_grid(release: ReleasedValues, preimages: Preimages, cells_X: Cells) -> int:
    """Return the number of released values that no integer noise on these cells gives.

    Args:
        release: the release.
        preimages: its preimages.
        cells_X: the sum, in cells.
    """
    is_possible_X = ~preimages.is_narrow_X
    for update_X in _candidates(preimages):
        for step in (0, -1, 1):
            noisy_X = np.rint(update_X.astype(np.float64) / release.scale) + step
            is_in_reach_X = np.abs(noisy_X - cells_X) <= REACH * release.std
            is_possible_X |= is_in_reach_X & (release.post(_update(noisy_X, release)) == release.values_X)
    return int((~is_possible_X).sum())


def impossible_in_floats(release: ReleasedValues, preimages: Preimages, cells_X: Cells) -> int:
    """Return the number of released values that no float32 noise on the float32 sum of these cells gives.

    Args:
        release: the release.
        preimages: its preimages.
        cells_X: the sum, in cells.
    """
    total_X, is_possible_X = cells_X.astype(np.float32), ~preimages.is_narrow_X
    for update_X in _candidates(preimages):
        for sum_X in _neighbours((update_X.astype(np.float64) / release.scale).astype(np.float32)):
            for noise_X in _neighbours(sum_X - total_X):
                is_possible_X |= release.post(_update(total_X + noise_X, release)) == release.values_X
    return int((~is_possible_X).sum())


def _candidates(preimages: Preimages) -> Iterator[Floats]:
    """Yield arrays `[X]` that together hold every preimage of the narrow ones."""
    is_narrow_X = preimages.is_narrow_X
    widest = int((preimages.high_X - preimages.low_X)[is_narrow_X].max()) if is_narrow_X.any() else -1
    for offset in range(widest + 1):
        yield _number(np.minimum(preimages.low_X + offset, preimages.high_X))


def _update(noisy_X: NDArray[np.floating], release: ReleasedValues) -> Floats:
    """Return the update of a noisy sum in cells: scaled in float64, then rounded."""
    return (noisy_X.astype(np.float64) * release.scale).astype(np.float32)


def _neighbours(numbers: Floats) -> list[Floats]:
    return [_number(_position(numbers) + step) for step in (-1, 0, 1)]


def unevenness(release: ReleasedValues, preimages: Preimages, cells_X: Cells) -> float:
    """Return how unevenly the low bits of the integer noise are spread if the sum is `cells_X`: a chi-square statistic.

    Values that do not show their integer are left out.

    Args:
        release: the release.
        preimages: its preimages.
        cells_X: the sum, in cells.
    """
    middle_X = (_number(preimages.low_X).astype(np.float64) + _number(preimages.high_X)) / 2
    width_X = (_number(preimages.high_X).astype(np.float64) - _number(preimages.low_X)) / release.scale
    noise_X = (np.rint(middle_X / release.scale) - cells_X)[width_X < 1].astype(np.int64)
    counts = np.bincount(noise_X & ((1 << _LOW_BITS) - 1), minlength=1 << _LOW_BITS)
    return float(((counts - counts.mean()) ** 2).sum() / max(1.0, counts.mean()))


@dataclass(frozen=True)
class Attack:
    """The result of one attack on one release.

    Attributes:
        guess: True if the second of the two sums is more plausible.
        impossible: number of values that integer noise cannot give, under either sum.
    """

    guess: bool
    impossible: int


def attack(release: ReleasedValues, sums: tuple[Cells, Cells]) -> Attack:
    """Guess which of two sums a release was computed from.

    The sum with fewer impossible values under float noise wins. If both have as many, the sum whose integer noise has
    the more even low bits wins.

    Args:
        release: the release.
        sums: both sums in cells, `[X]` each.
    """
    most = max(float(np.abs(cells_X).max()) for cells_X in sums) + REACH * release.std
    preimages = find_preimages(release, 2 * most * release.scale)
    without, included = (
        (impossible_in_floats(release, preimages, cells_X), unevenness(release, preimages, cells_X)) for cells_X in sums
    )
    return Attack(included < without, max(impossible_on_grid(release, preimages, cells_X) for cells_X in sums))


def interval(correct: int, out_of: int, confidence: float) -> list[float]:
    """Return the Clopper-Pearson interval of the chance of a right guess: lower and upper end.

    Args:
        correct: number of right guesses.
        out_of: number of guesses, at least 1.
        confidence: in (0, 1).
    """
    ends = binomtest(correct, out_of).proportion_ci(confidence, method="exact")
    return [float(ends.low), float(ends.high)]


def p_value(correct: int, out_of: int) -> float:
    """Return the probability of so many right guesses, or more, by tossing a fair coin.

    Args:
        correct: number of right guesses.
        out_of: number of guesses, at least 1.
    """
    return float(binomtest(correct, out_of, alternative="greater").pvalue)
