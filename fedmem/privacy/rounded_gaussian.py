"""Draw Gaussian noise as integers: the floor of a Gaussian, one cell of a grid at a time.

The accounting assumes the law `P(k) = Phi((k + 1) / s) - Phi(k / s)`, the floor of N(0, s^2). For an integer x,
floor(x + N) = x + floor(N), so an integer plus this noise is post-processing of the Gaussian mechanism: it has exactly
the privacy of the continuous noise, and no low bits that could give x away (Mironov 2012; Haney et al. 2022).

The sampler draws another law, `Q(k)` in proportion to `exp(-(k + 1/2)^2 / (2 s^2 + 1/6))` (Sheppard's correction), by
rejection. One 64-bit word chooses a column of a table, and with it a bin of cells of equal width, then a sign and a
cell of the bin, each uniformly. The cell is accepted with probability `A(k) = Q(k) / (bin's columns) * constant`. So
the table decides the speed alone: whatever it holds, accepted cells have the law Q, because every column is equally
likely and every bin has a power of two of cells.

Guarantees: for every cell within `RANGE` standard deviations, |log(Q'(k) / P(k))| <= `CELL_ERROR`, where Q' is the law
that the code draws (docs/adr/0009-noise-on-a-grid.md). The parts of this bound, for a std from `LEAST_STD` cells on:

| part | at most |
|---|---|
| Q for P: (z / s)^4 / 2880 + (z / s)^2 / (480 s^2), z <= 32 | 3.2e-16 |
| float64: argument and value of `exp`, head of a bin, product; twice, since the law is normalised | 2.7e-15 |
| the mass beyond RANGE, which changes the normaliser | 1e-220 |

A probability is compared with a uniform number digit by digit, without a limit on the digits, so small probabilities
lose nothing. Beyond RANGE the mass is below 1e-220. This mass alone adds to delta, for each value and times
1 + e^epsilon.

>>> from fedmem.privacy.stream import PrivacyStream
>>> rounded_gaussian(PrivacyStream(bytes(32), b"example"), 3, std=1e6).dtype
dtype('int64')
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import Refused

MECHANISM = "rounded-gaussian/1"
"""The name of this noise. What was begun under another one is not resumed with it."""
CELL_ERROR = 2.0**-48
"""The greatest |log ratio| of the drawn and the assumed probability of a cell."""
MOST_VALUES = 1 << 26
"""The most values that get noise in one step."""
STEP_EPSILON = 2 * MOST_VALUES * CELL_ERROR
"""What one step adds to epsilon: the ratio of every value, under both data sets. 4.8e-7; the accounting adds it."""
RANGE = 32
"""Standard deviations within which the ratio of every cell is bounded."""
LEAST_STD, MOST_STD = 2.0**15, 2.0**36
REACH = 64
"""Standard deviations that no draw exceeds."""
_COLUMNS, _BINS = 1 << 16, 1 << 11  # a bin is 1/64 to 1/32 std wide, so the bins reach from RANGE to REACH
_OFFSET, _SIGN, _COLUMN = (np.uint64(shift) for shift in (16, 47, 48))
_COIN = np.uint64(0xFFFF)
_CHUNK = 1 << 14  # words in a pass: they stay in the cache


class Words(Protocol):
    """A source of independent uniform 64-bit words."""

    def words(self, n: int) -> NDArray[np.uint64]: ...


@dataclass(frozen=True)
class _Table:
    """The public table of a standard deviation.

    Attributes:
        bits: a bin has 2^bits cells.
        twice_variance: 2 s^2 + 1/6.
        bin_of: the bin of each column.
        head: acceptance of the first cell of each bin, float64, below 1.
        sure: a coin of 16 bits below this accepts every cell of the bin.
    """

    bits: int
    twice_variance: float
    bin_of: NDArray[np.uint64]
    head: NDArray[np.float64]
    sure: NDArray[np.uint64]


@lru_cache(maxsize=16)
def _table(std: float) -> _Table:
    bits = math.frexp(std)[1] - 6  # std / 64 < width <= std / 32
    width, twice_variance = 1 << bits, 2 * Fraction(std) ** 2 + Fraction(1, 6)
    firsts = [number * width for number in range(_BINS)]
    peaks = [_exp(-Fraction(first * (first + 1)) / twice_variance) for first in firsts]
    scale = (_COLUMNS - _BINS) / math.fsum(peaks)
    columns = [math.floor(scale * peak) + 1 for peak in peaks]
    columns[0] += _COLUMNS - sum(columns)
    head = np.array([scale * peak / count for peak, count in zip(peaks, columns, strict=True)])
    table = _Table(bits, float(twice_variance), np.repeat(np.arange(_BINS, dtype=np.uint64), columns), head, head)
    lasts = np.arange(_BINS, dtype=np.uint64), np.full(_BINS, width - 1, np.uint64)
    sure = np.maximum(np.floor(_acceptance(table, *lasts) * 2.0**16) - 1, 0).astype(np.uint64)
    return _Table(table.bits, table.twice_variance, table.bin_of, head, sure)


def _exp(exponent: Fraction) -> float:
    """Return exp of an exact number that is at most 0, to two units in the last place; 0 below 2^-1022."""
    coarse = float(exponent)
    return math.exp(coarse) * (1 + float(exponent - Fraction(coarse))) if coarse > -708 else 0.0


def _acceptance(table: _Table, bins: NDArray[np.uint64], offsets: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the probability that the cell at an offset of a bin is accepted: its law relative to the proposal's."""
    first, within = (bins << np.uint64(table.bits)).astype(np.float64), offsets.astype(np.float64)
    # (k + 1/2)^2 less that of the bin's first cell: at most 1 in the exponent, so its rounding is below 4e-16.
    exponent = within * (within + 2 * first + 1) / -table.twice_variance
    return np.exp(exponent) * table.head[bins.view(np.int64)]


def rounded_gaussian(stream: Words, n: int, std: float) -> NDArray[np.int64]:
    """Return `n` independent draws of the floor of N(0, std^2).

    Guarantees: the law of each draw is within CELL_ERROR of that of the floor of a Gaussian of std `std` cells, as a
    ratio for each cell (see above). Draws are a function of the words of the stream alone.

    | case | result |
    |---|---|
    | `n` = 0 | an empty array |
    | `std` = 0 | zeros |

    Args:
        stream: the source of uniform words.
        n: number of draws, at least 0.
        std: standard deviation in cells: 0, or in [LEAST_STD, MOST_STD).

    Raises:
        Refused: the std is out of range, or there are more than MOST_VALUES draws, so no bound holds.
    """
    if std == 0:
        return np.zeros(n, np.int64)
    if not (LEAST_STD <= std < MOST_STD and n <= MOST_VALUES):
        raise Refused(
            "The noise is too small or too large for its grid, or has too many values; change its multiplier."
        )
    table, out, filled = _table(std), np.empty(n, np.int64), 0
    while filled < n:
        draws = _accepted(stream, table, min(_CHUNK, n - filled + (n - filled) // 8 + 8))[: n - filled]
        out[filled : filled + len(draws)] = draws
        filled += len(draws)
    return out


def _accepted(stream: Words, table: _Table, count: int) -> NDArray[np.int64]:
    """Return the accepted ones of `count` proposals, in order."""
    words = stream.words(count)
    bins = table.bin_of.take((words >> _COLUMN).view(np.int64), mode="clip")
    offsets = (words >> _OFFSET) & np.uint64((1 << table.bits) - 1)
    coins = words & _COIN
    is_accepted = coins < table.sure.take(bins.view(np.int64), mode="clip")
    unsure = np.flatnonzero(~is_accepted)
    is_accepted[unsure] = _below(stream, coins[unsure], _acceptance(table, bins[unsure], offsets[unsure]))
    cells = ((bins << np.uint64(table.bits)) | offsets).view(np.int64)
    # All bits of a negative number are those of its mirror image, flipped: k becomes -k - 1.
    cells ^= -((words >> _SIGN) & np.uint64(1)).view(np.int64)
    return cells if is_accepted.all() else cells[is_accepted]


def _below(stream: Words, coins: NDArray[np.uint64], chances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return True with probability `chances`, for uniform numbers whose first 16 bits are the coins.

    The digits of a float64 end, so the comparison is exact: it goes on with new digits while all digits are equal.
    """
    scaled = chances * 2.0**16
    digits = np.floor(scaled)
    result, tied = coins < digits, np.flatnonzero(coins == digits)
    rest = (scaled - digits)[tied]
    while len(tied):
        scaled = rest * 2.0**64
        digits = np.floor(scaled)
        words, whole = stream.words(len(tied)), digits.astype(np.uint64)
        result[tied] = words < whole
        is_tied = (words == whole) & (scaled > digits)
        tied, rest = tied[is_tied], (scaled - digits)[is_tied]
    return result
