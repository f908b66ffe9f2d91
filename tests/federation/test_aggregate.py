import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.federation import fixedpoint
from fedmem.federation.aggregate import Summed, Trimmed
from fedmem.federation.device_dp import DevicePlan

CELLS = fixedpoint.cells(1.0)
STEP = fixedpoint.grid_step(1.0)


def trimmed(values: list[int], share: float) -> float:
    chosen = Trimmed(share, clip=1.0)
    for value in values:
        chosen.add({"w": np.array([value], np.int32)})
    return float(chosen.mean({"w": (1,)})["w"][0])


@given(values=st.lists(st.integers(-CELLS, CELLS), min_size=1, max_size=30), share=st.floats(0, 0.49))
@settings(max_examples=200, deadline=None)
def test_a_trimmed_mean_is_the_mean_of_what_is_left_of_the_sorted_values(values: list[int], share: float) -> None:
    cut = int(share * len(values))
    left = sorted(values)[cut : len(values) - cut]
    assert trimmed(values, share) == pytest.approx(statistics.fmean(left) * STEP, rel=1e-6, abs=1e-9)


@given(honest=st.lists(st.integers(-1000, 1000), min_size=7, max_size=12), lies=st.lists(st.integers(-CELLS, CELLS)))
@settings(max_examples=100, deadline=None)
def test_a_minority_within_the_trim_cannot_leave_the_range_of_the_honest(honest: list[int], lies: list[int]) -> None:
    lies = lies[:3]
    got = trimmed(honest + lies, share=0.31) / STEP
    assert min(honest) - 1e-3 <= got <= max(honest) + 1e-3


def test_without_the_trim_one_liar_moves_the_mean_out_of_that_range() -> None:
    assert trimmed([1, 2, 3, CELLS], share=0.0) / STEP > 3
    assert trimmed([1, 2, 3, CELLS], share=0.25) / STEP == pytest.approx(2.5)


def test_the_order_of_replies_has_no_effect() -> None:
    assert len({trimmed(list(order), 0.2) for order in itertools.permutations([5, -7, 900, 12, -3])}) == 1


def test_no_reply_is_no_update() -> None:
    assert Trimmed(0.1, 1.0).mean({"w": (2,)})["w"].tolist() == [0, 0]


def test_a_sum_holds_the_same_memory_for_any_cohort() -> None:
    plan = DevicePlan(population=1000, unsafe_no_dp=True, unsafe_reason="a test")
    chosen = Summed({"w": (1000,)})
    arrays = [value for value in vars(chosen).values() for value in value.values()]
    for _ in range(50):
        chosen.add({"w": np.ones(1000, np.int32)})
    after = [value for value in vars(chosen).values() for value in value.values()]
    assert [a.nbytes for a in after] == [8000]
    assert all(a is b for a, b in zip(arrays, after, strict=True))
    assert chosen.mean(plan, None)["w"][0] == np.float32(50 * STEP / 1000)
