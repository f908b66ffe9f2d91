"""The law of the integer noise: cell by cell against 60 digits, and as it is drawn."""

import math

import mpmath
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from fedmem.errors import Refused
from fedmem.privacy import rounded_gaussian as noise
from fedmem.privacy.rounded_gaussian import CELL_ERROR, LEAST_STD, MOST_STD, MOST_VALUES, RANGE, rounded_gaussian
from fedmem.privacy.stream import PrivacyStream
from tests.privacy.reference import log_ratios

STDS = [LEAST_STD, LEAST_STD + 0.3, 2.0**20, 1.3e6, 2.0**23 * 0.9712, 5e9, MOST_STD * (1 - 2**-30)]


def stream(label=b"run"):
    return PrivacyStream(bytes(range(32)), label)


def some_cells(std, count):
    """Zero, the edges of bins, the last cell within the range, and others."""
    drawn, width = np.random.default_rng(7), 1 << noise._table(std).bits
    reach = int(RANGE * std)
    first = [number * width for number in range(0, reach // width, 97)]
    return [0, *first, *(cell + width - 1 for cell in first), reach - 1, *drawn.integers(0, reach, count).tolist()]


@pytest.mark.parametrize("std", STDS)
def test_every_cell_has_its_probability_up_to_the_stated_ratio(std):
    """The law is normalised, so the error of a cell is at most the spread of all errors."""
    ratios = log_ratios(std, [cell for cell in some_cells(std, 300) if cell < RANGE * std])
    assert max(ratios) - min(ratios) <= CELL_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("std", STDS)
def test_every_cell_has_its_probability_up_to_the_stated_ratio_at_many_cells(std):
    ratios = log_ratios(std, [cell for cell in some_cells(std, 20_000) if cell < RANGE * std])
    assert max(ratios) - min(ratios) <= CELL_ERROR


def test_the_check_would_see_a_gaussian_that_is_wider_by_one_in_a_trillion(monkeypatch):
    table = noise._table(1e6)
    wider = noise._Table(table.bits, table.twice_variance * (1 + 1e-12), table.bin_of, table.head, table.sure)
    monkeypatch.setattr(noise, "_table", lambda _: wider)
    ratios = log_ratios(1e6, some_cells(1e6, 50))
    assert max(ratios) - min(ratios) > CELL_ERROR


@pytest.mark.parametrize("std", STDS)
def test_the_cells_that_are_left_have_no_mass_to_speak_of(std):
    table = noise._table(std)
    reach = len(table.head) << table.bits
    assert RANGE * std <= reach <= noise.REACH * std
    assert float(mpmath.erfc(RANGE / mpmath.sqrt(2))) < 1e-220


@pytest.mark.parametrize("std", STDS)
def test_a_table_gives_no_chance_above_one_and_is_sure_of_no_cell_that_has_less(std):
    table, numbers = noise._table(std), np.arange(1 << 11, dtype=np.uint64)
    first, last = (noise._acceptance(table, numbers, np.full_like(numbers, at)) for at in (0, (1 << table.bits) - 1))
    assert len(table.bin_of) == 1 << 16
    assert set(table.bin_of.tolist()) == set(range(1 << 11))
    assert (first < 1).all()
    assert (first >= last).all()
    assert (table.sure <= last * 2.0**16).all()


@pytest.mark.parametrize("std", [LEAST_STD, 1.3e6, 5e9])
def test_draws_are_normal(std):
    draws = rounded_gaussian(stream(), 400_001, std) / std
    assert abs(draws.std() - 1) < 0.005
    assert kstest(draws, "norm").pvalue > 1e-3
    assert kstest(draws / 1.02, "norm").pvalue < 1e-3
    assert 4 < np.abs(draws).max() < 6


def test_every_cell_of_a_neighbourhood_is_as_likely_as_the_next():
    """The low bits are uniform, also for negative draws and at the edges of bins."""
    draws = rounded_gaussian(stream(), 1_000_000, LEAST_STD)
    for side in (draws[draws >= 0], draws[draws < 0]):
        assert chisquare(np.bincount(side & 255, minlength=256)).pvalue > 1e-4
    assert abs((draws >= 0).mean() - 0.5) < 0.002
    inner = draws[np.abs(draws) < 2048]  # four bins, in which the density falls by 0.2 %
    assert chisquare(np.histogram(inner, bins=32, range=(-2048, 2048))[0]).pvalue > 1e-4


def test_draws_are_independent_of_the_ones_before():
    draws = rounded_gaussian(stream(), 400_000, 1e6).astype(float)
    quarters = draws.reshape(4, -1)
    for values in (quarters, quarters**2):
        assert np.abs(np.corrcoef(values) - np.eye(4)).max() < 5 / math.sqrt(100_000)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / math.sqrt(100_000)


class Fixed:
    """Words that are given."""

    def __init__(self, *words):
        self.left = list(words)

    def words(self, n):
        taken, self.left = self.left[:n], self.left[n:]
        return np.array(taken, np.uint64)


@pytest.mark.parametrize(
    ("chance", "coin", "words", "accepted"),
    [
        (0.5 + 2.0**-18, 0x7FFF, [], True),
        (0.5 + 2.0**-18, 0x8001, [], False),
        (0.5 + 2.0**-18, 0x8000, [2**62 - 1], True),
        (0.5 + 2.0**-18, 0x8000, [2**62], False),
        (2.0**-90, 0, [1], False),
        (2.0**-90, 0, [0, 2**54 - 1], True),
        (2.0**-90, 0, [0, 2**54], False),
        (0.0, 0, [0], False),
    ],
)
def test_a_chance_is_compared_digit_by_digit(chance, coin, words, accepted):
    source = Fixed(*words)
    assert noise._below(source, np.array([coin], np.uint64), np.array([chance])).tolist() == [accepted]
    assert not source.left


@pytest.mark.parametrize("n", [0, 1, 2, 7, (1 << 14) - 1, 1 << 14, (1 << 15) + 3])
def test_sizes_and_no_noise(n):
    assert rounded_gaussian(stream(), n, 1e6).shape == (n,)
    assert rounded_gaussian(stream(), n, 1e6).dtype == np.int64
    assert not rounded_gaussian(stream(), n, 0.0).any()


@pytest.mark.parametrize(
    ("n", "std"), [(3, LEAST_STD - 1), (3, MOST_STD), (3, math.nan), (3, -1e6), (MOST_VALUES + 1, 1e6)]
)
def test_noise_without_a_bound_is_refused(n, std):
    with pytest.raises(Refused, match="too small or too large"):
        rounded_gaussian(stream(), n, std)


def test_the_vector_of_a_key():
    """Other bytes for the same key would let two noises of one training cancel each other."""
    draws = rounded_gaussian(stream(), 4000, 1e6)
    assert draws[:4].tolist() == VECTOR
    # Some thirty of the draws before these had to be looked at twice.
    assert draws[-2:].tolist() == LATE


VECTOR = [-628966, 894117, -542543, -2854765]
LATE = [-1014801, 77590]
