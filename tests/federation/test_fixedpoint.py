import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedmem.errors import Refused
from fedmem.federation import fixedpoint

clips = st.floats(1e-6, 1e6)
updates = arrays(np.int32, st.integers(0, 40), elements=st.integers(-(2**31), 2**31 - 1))


@given(clip=clips)
def test_the_step_is_a_power_of_two_and_the_clip_fits_24_bits(clip: float) -> None:
    step = fixedpoint.grid_step(clip)
    assert math.frexp(step)[0] == 0.5
    assert 2**23 <= fixedpoint.cells(clip) < 2**24


@given(update=updates, clip=clips)
@settings(max_examples=200, deadline=None)
def test_no_update_is_longer_than_the_clip_norm(update: np.ndarray, clip: float) -> None:
    clipped = fixedpoint.clip_grid({"a": update[::2], "b": update[1::2]}, clip)
    length = sum(int(cell) ** 2 for part in clipped.values() for cell in part)
    assert length <= fixedpoint.cells(clip) ** 2
    norm = math.sqrt(sum(np.square(fixedpoint.decode(p, fixedpoint.grid_step(clip))).sum() for p in clipped.values()))
    assert norm <= clip


@given(update=updates)
@settings(max_examples=50, deadline=None)
def test_clipping_twice_changes_nothing_more(update: np.ndarray) -> None:
    once = fixedpoint.clip_grid({"a": update}, 1.0)
    assert (fixedpoint.clip_grid(once, 1.0)["a"] == once["a"]).all()


def test_an_update_within_the_norm_keeps_every_cell() -> None:
    limit = fixedpoint.cells(1.0)
    update = {"a": np.array([limit, 0], np.int32)}
    assert (fixedpoint.clip_grid(update, 1.0)["a"] == update["a"]).all()


def test_clipping_keeps_the_direction() -> None:
    clipped = fixedpoint.clip_grid({"a": np.array([3 * 2**24, 4 * 2**24], np.int32)}, 1.0)["a"]
    assert clipped / fixedpoint.cells(1.0) == pytest.approx([0.6, 0.8], abs=1e-6)


@given(values=arrays(np.float32, 20, elements=st.floats(-100, 100, width=32)))
@settings(deadline=None)
def test_quantising_never_lets_a_value_grow(values: np.ndarray) -> None:
    step = fixedpoint.grid_step(1.0)
    decoded = fixedpoint.decode(fixedpoint.quantise(values, step), step)
    assert (np.abs(decoded) <= np.abs(values)).all()
    assert (np.abs(decoded - values) < step).all()


@pytest.mark.parametrize(("value", "error"), [(np.nan, ValueError), (np.inf, ValueError), (1e6, OverflowError)])
def test_what_has_no_place_on_the_grid_is_refused(value: float, error: type[Exception]) -> None:
    with pytest.raises(error):
        fixedpoint.quantise(np.array([value], np.float32), fixedpoint.grid_step(1.0))


def test_the_order_of_updates_has_no_effect() -> None:
    generator = np.random.default_rng(0)
    parts = [fixedpoint.clip_grid({"a": generator.integers(-(2**24), 2**24, 64, np.int32)}, 1.0) for _ in range(200)]
    sums = []
    for order in (range(200), reversed(range(200)), generator.permutation(200)):
        total = fixedpoint.empty_sums({"a": (64,)})
        for index in order:
            fixedpoint.add(total, parts[index])
        sums.append(total["a"].tobytes())
    assert len(set(sums)) == 1
    exact = [sum(int(part["a"][i]) for part in parts) for i in range(64)]
    assert np.frombuffer(sums[0], np.int64).tolist() == exact


def test_a_federation_that_could_overflow_is_refused() -> None:
    fixedpoint.check_headroom(10**9, 1.0)
    for devices, noise in ((2**40, 0), (10**9, 2**62)):
        with pytest.raises(Refused, match="overflow"):
            fixedpoint.check_headroom(devices, 1.0, noise)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, math.inf, 1e-310])
def test_a_clip_norm_without_a_grid_is_refused(clip: float) -> None:
    with pytest.raises(Refused, match="clip norm"):
        fixedpoint.grid_step(clip)
