"""One record's cells: its norm on the grid, in exact integers, for gradients that are made to break it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.privacy.clip import INSIDE, CellSum
from fedmem.privacy.grid import LOSS, WITHOUT_NOISE, Grid
from tests.privacy.reference import clipped, fresh, length

VALUES = 300
KINDS = (
    "normal",
    "zero",
    "tiny",
    "huge",
    "enormous",
    "nan",
    "inf",
    "one_nan",
    "subnormal",
    "spike",
    "constant",
    "edge",
)
UNUSABLE = ("nan", "inf", "one_nan", "enormous")
GRID = Grid.fitting(0.1, 1.0, VALUES, 1000)


def gradient(kind, seed, clip=0.1, dtype=torch.float32):
    """One record's gradient `[X]`."""
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal(VALUES)).to(dtype)
    if kind in ("nan", "inf"):
        return torch.full_like(drawn, float(kind))
    if kind == "one_nan":
        drawn[3] = math.nan
    if kind == "spike":
        drawn[1:] = 0
    if kind == "constant":
        drawn[:] = 0.3
    if kind == "edge":  # as near to the clip norm as floats go
        return (drawn.double() * (clip / float(drawn.double().norm()))).to(dtype)
    return drawn * {"zero": 0.0, "tiny": 1e-30, "huge": 1e12, "enormous": 3e37, "subnormal": 1e-42}.get(kind, 1.0)


@settings(max_examples=200, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8),
    clip=st.sampled_from([1e-3, 0.1, 0.7, 50.0]),
    noise=st.sampled_from([0.0, 0.3, 1.0, 9.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_a_record_counts_with_at_most_the_clip_norm_and_moves_no_other(kinds, clip, noise, dtype, seed):
    grid = Grid.fitting(clip, noise, VALUES, 1000)
    grads = [gradient(kind, seed + number, clip, dtype) for number, kind in enumerate(kinds)]
    whole = fresh(grads, grid)
    for number, kind in enumerate(kinds):
        alone = fresh([grads[number]], grid)
        assert length(alone) <= grid.cells**2
        assert torch.equal(whole - fresh([*grads[:number], *grads[number + 1 :], grads[number] * 0], grid), alone)
        assert not (kind in UNUSABLE and alone.any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_record_is_what_the_definition_says_to_a_cell(kind, dtype):
    """The allowance INSIDE may take a cell in a million from a record that is clipped."""
    grad_X = gradient(kind, 5, dtype=dtype)
    off = (fresh([grad_X], GRID) - clipped([grad_X], GRID)).abs()
    assert (off <= 1 + clipped([grad_X], GRID).abs() * (2 * (1 - INSIDE))).all()


def test_a_record_within_the_norm_is_truncated_and_nothing_else():
    grad_X = gradient("normal", 1) * 1e-3
    exact = [math.trunc(float(value) / GRID.spacing) for value in grad_X]
    assert fresh([grad_X], GRID).tolist() == exact
    assert min(exact) < 0 < max(exact)


@pytest.mark.parametrize("values", [1, VALUES, 196_608, 829_440])
def test_a_clipped_record_keeps_99_95_percent_of_its_norm(values):
    """Equal values lose most: at 829,440 of them a grid of 2^-16 clip norms would take 3 %."""
    grid = Grid.fitting(0.1, 1.0, values, 1000)
    for grad_X in (torch.full((values,), 1.0), torch.from_numpy(np.random.default_rng(0).standard_normal(values))):
        kept = float(fresh([grad_X], grid).double().norm()) * grid.spacing / grid.clip
        assert 0.9995 <= kept <= 1


@pytest.mark.parametrize("size", [VALUES, 70_001])
def test_without_the_allowance_a_record_passes_the_clip_norm(monkeypatch, size):
    """The negative control: a scale without a margin, and rounding instead of truncation."""
    drawn = np.random.default_rng(3)

    def longest():
        grid, worst = Grid(2.0**-40, 1.0), 0
        for _ in range(30):
            cells = fresh([torch.from_numpy(drawn.standard_normal(size))], grid).numpy().astype(np.float64)
            worst = max(worst, float(np.square(cells).sum()) / grid.cells**2)
        return worst

    assert longest() <= 1
    monkeypatch.setattr("fedmem.privacy.clip.INSIDE", 1 + 2.0**-20)
    assert longest() > 1


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_records_leave_no_trace(kind):
    assert torch.equal(fresh([gradient(kind, 1), gradient("normal", 2)], GRID), fresh([gradient("normal", 2)], GRID))


def test_a_long_gradient_is_cut_like_a_short_one():
    """Beyond one pass over the cache, in one sum that is used again."""
    values = (1 << 17) + 7
    grid, grad_X = Grid.fitting(0.1, 1.0, values, 10), torch.full((values,), 1e-5)
    total = CellSum.zero(values, grid)
    for _ in range(3):
        total.add(grad_X)
    assert total.cells_X.unique().tolist() == [3 * math.trunc(float(grad_X[0]) / grid.spacing)]


@pytest.mark.parametrize("clip", [1e-6, 0.1, 3.0, 1e6])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize("values", [1, 1000, 1_572_864])
def test_the_grid_is_fine_enough_for_truncation_and_noise(clip, noise, values):
    grid = Grid.fitting(clip, noise, values, 10_000)
    assert math.frexp(grid.spacing)[0] == 0.5
    assert grid.spacing * math.sqrt(values) <= LOSS * clip
    assert noise == 0 or grid.std(noise) >= 2**15
    coarser = grid.spacing * 2
    finest = noise / 2**15 if noise else WITHOUT_NOISE
    assert coarser * math.sqrt(values) > LOSS * clip or coarser > finest * clip
    assert grid.cells * grid.spacing <= clip < (grid.cells + 1) * grid.spacing
