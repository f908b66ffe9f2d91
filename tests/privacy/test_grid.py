"""Grids that cannot be: refused before anything is computed."""

import math

import pytest

from fedmem.errors import Refused
from fedmem.privacy.grid import SUM_LIMIT, Grid
from fedmem.privacy.rounded_gaussian import MOST_VALUES, REACH


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf, 1e-320, 5e-324])
def test_a_clip_norm_without_a_grid_is_refused(clip):
    with pytest.raises(Refused, match="clip norm") as caught:
        Grid.fitting(clip, 1.0, 1000, 100)
    assert caught.value.exit_code == 4


def test_the_largest_cohort_that_fits_is_the_limit():
    grid = Grid.fitting(0.1, 1.0, 1000, 100)
    most = (SUM_LIMIT - 1 - math.ceil(REACH * grid.std(1.0))) // grid.cells
    assert Grid.fitting(0.1, 1.0, 1000, most) == grid
    with pytest.raises(Refused, match="overflow") as caught:
        Grid.fitting(0.1, 1.0, 1000, most + 1)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("noise", "values"), [(2.0**40, 1000), (1.0, MOST_VALUES + 1), (5e-324, 1)])
def test_noise_or_blocks_without_a_bound_are_refused(noise, values):
    with pytest.raises(Refused, match="nothing was computed"):
        Grid.fitting(0.1, noise, values, 100)
