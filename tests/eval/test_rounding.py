"""The rounding attack: it finds every update that may give a value, and what no noise can give."""

import numpy as np
import pytest
import torch

from fedmem.eval.rounding import (
    Preimages,
    ReleasedValues,
    attack,
    find_preimages,
    impossible_in_floats,
    impossible_on_grid,
    interval,
    p_value,
    unevenness,
)
from fedmem.eval.rounding import _number as number
from fedmem.eval.rounding import _position as position
from fedmem.privacy.clip import CellSum
from fedmem.privacy.dpsgd import add_noise
from fedmem.privacy.grid import Grid
from fedmem.privacy.stream import PrivacyStream

RANDOM = np.random.default_rng(5)


def stream(trial):
    return PrivacyStream(trial.to_bytes(32, "big"), b"attack")


def test_positions_count_float32_numbers_in_their_order():
    numbers = np.sort(RANDOM.standard_normal(500).astype(np.float32))
    assert np.array_equal(number(position(numbers)), numbers)
    assert np.array_equal(number(position(numbers) + 1), np.nextafter(numbers, np.float32(np.inf)))
    around_zero = number(np.arange(-2, 3))
    assert np.all(np.diff(around_zero) > 0)
    assert np.array_equal(position(np.array([0.0, -0.0], np.float32)), [0, 0])


@pytest.mark.parametrize(
    ("post", "error"),
    [
        (lambda u: u, 0.0),
        (lambda u: np.float32(1 / 3) * u, 0.0),  # rounds once, so it never decreases
        (lambda u: u / (np.sqrt(np.float32(0.01) * u * u + np.float32(1e-6)) + np.float32(1e-3)), 8.0),
    ],
)
def test_all_updates_that_give_a_value_are_preimages(post, error):
    """Against a search of 4,000 neighbours."""
    updates = RANDOM.standard_normal(200).astype(np.float32) * np.float32(0.01)
    values = post(updates)
    release = ReleasedValues(values, post, np.asarray(error * np.spacing(np.abs(values)), np.float32), 1.0, 1.0)
    preimages = find_preimages(release, bound=1.0)
    for step in range(-2000, 2001):
        near = position(updates) + step
        gives_it = post(number(near)) == values
        assert np.all((near >= preimages.low_X)[gives_it] & (near <= preimages.high_X)[gives_it])
    if not error:
        assert np.array_equal(post(number(preimages.low_X)), values)
        assert np.array_equal(post(number(preimages.high_X)), values)


def released(noisy, scale=2.0**-20, std=2.0**20):
    values = (np.asarray(noisy, np.float64) * scale).astype(np.float32)
    release = ReleasedValues(values, lambda u: u, np.zeros_like(values), scale, std)
    return release, find_preimages(release, 1e6)


def test_an_integer_sum_with_integer_noise_is_possible_from_every_sum():
    sums = RANDOM.integers(-(2**18), 2**18, 4000)
    release, preimages = released(sums + np.rint(2.0**20 * RANDOM.standard_normal(4000)).astype(np.int64))
    assert impossible_on_grid(release, preimages, sums) == impossible_on_grid(release, preimages, 0 * sums) == 0


def test_a_value_between_two_cells_or_out_of_reach_is_impossible():
    release, preimages = released([0.5, 1.0, 3.25, 2.0])
    assert impossible_on_grid(release, preimages, np.zeros(4, np.int64)) == 2
    assert impossible_on_grid(release, preimages, np.full(4, 2**27)) == 4


def test_a_value_of_too_many_updates_is_skipped():
    release, _ = released([0.5])
    everything = Preimages(np.array([-100]), np.array([100]))
    assert impossible_on_grid(release, everything, np.zeros(1, np.int64)) == 0
    assert impossible_in_floats(release, everything, np.zeros(1, np.int64)) == 0


def test_float_noise_is_possible_from_its_own_sum_and_not_from_another():
    sums = RANDOM.integers(-(2**34), 2**34, 4000)
    noise = (2.0**34 * RANDOM.standard_normal(4000)).astype(np.float32)
    release, preimages = released(sums.astype(np.float32) + noise, std=2.0**34)
    assert impossible_in_floats(release, preimages, sums) == 0
    assert impossible_in_floats(release, preimages, sums + RANDOM.integers(-(2**20), 2**20, 4000)) > 20
    assert attack(release, (sums + 12345, sums)).guess
    assert not attack(release, (sums, sums + 12345)).guess


def test_the_low_bits_of_integer_noise_are_even_under_both_sums_and_those_of_a_coarse_one_are_not():
    """The control: noise of multiples of 8 gives the sum away by its low bits."""
    grid = Grid.fitting(clip=0.1, noise_multiplier=1.0, values=4000, records=100)
    one, none = RANDOM.integers(-(2**12), 2**12, 4000), np.zeros(4000, np.int64)
    noisy = add_noise(CellSum(torch.from_numpy(one), grid), 1.0, stream(1)).numpy()
    coarse = one + 8 * ((noisy - one) // 8)
    for values, limit in ((noisy, 45.0), (coarse, None)):
        release, preimages = released(values, grid.spacing, grid.std(1.0))
        uneven = [unevenness(release, preimages, cells) for cells in (none, one)]
        if limit:
            assert max(uneven) < limit  # 15 degrees of freedom: passed by chance once in 10,000
        else:
            assert uneven[1] > 1000 > 45 > uneven[0]


def test_the_interval_is_that_of_clopper_and_pearson():
    assert interval(24, 24, 0.99) == [pytest.approx(0.005 ** (1 / 24)), 1.0]
    assert interval(0, 24, 0.99) == [0.0, pytest.approx(1 - 0.005 ** (1 / 24))]
    low, high = interval(12, 24, 0.99)
    assert low + high == pytest.approx(1.0)
    assert p_value(24, 24) == pytest.approx(2.0**-24)
    assert p_value(12, 24) > 0.5
