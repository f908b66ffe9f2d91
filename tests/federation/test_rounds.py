from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedmem.errors import BoundaryViolation, BudgetExceeded, Refused, UsageError
from fedmem.federation import fixedpoint
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import Coordinator, Durable, RoundAborted, RoundSettings
from fedmem.federation.wire import Fields
from fedmem.privacy.stream import PrivacyStream

SHAPES = {"b": (3,), "w": (2, 2)}
PLAN = DevicePlan(population=3, rounds=2, clip=1.0, unsafe_no_dp=True, unsafe_reason="a test")
CLIP = fixedpoint.cells(1.0)
NOW = 10.0


def coordinator(**settings: Any) -> Coordinator:
    params = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return Coordinator(params, PLAN, None, RoundSettings(**settings))


def update(cells: int = 0) -> Fields:
    return Fields({"b": np.array([cells, 0, 0], np.int32), "w": np.zeros((2, 2), np.int32)})


def finish(c: Coordinator, number: int = 1) -> np.ndarray:
    c.spend()
    return c.close(Durable(number))["b"]


def test_a_round_averages_the_updates_over_the_declared_population() -> None:
    c = coordinator(server_learning_rate=0.5)
    c.open([1, 2])
    c.accept(1, 1, update(CLIP), NOW)
    c.accept(2, 1, update(CLIP // 2), NOW)
    assert finish(c).tolist() == [pytest.approx(0.5 * 1.5 / 3, rel=1e-6), 0, 0]
    assert c.finished_rounds == 1


def test_replies_in_any_order_give_the_same_bytes() -> None:
    cells = {1: 3, 2: -CLIP // 3, 3: CLIP - 1}
    results = set()
    for order in ([1, 2, 3], [3, 1, 2], [2, 3, 1]):
        c = coordinator()
        c.open([3, 2, 1])
        for node in order:
            c.accept(node, 1, update(cells[node]), NOW)
        results.add(finish(c).tobytes())
    assert len(results) == 1


BAD = {
    "a duplicate": (1, 1, update(9), Refused),
    "a replay of another round": (2, 0, update(9), Refused),
    "a reply from the future": (2, 2, update(9), Refused),
    "an unknown node": (99, 1, update(9), Refused),
    "a cell beyond the clip": (2, 1, update(CLIP + 1), BoundaryViolation),
    "floats with a NaN": (2, 1, Fields({**update().arrays, "b": np.full(3, np.nan, np.float32)}), BoundaryViolation),
    "another shape": (2, 1, Fields({**update().arrays, "b": np.zeros(4, np.int32)}), BoundaryViolation),
    "a metric": (2, 1, Fields(update().arrays, {"loss": 0.1}), BoundaryViolation),
    "nothing": (2, 1, Fields({}), BoundaryViolation),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_reply_is_refused_and_leaves_the_round_as_it_was(bad: tuple[int, int, Fields, type[Exception]]) -> None:
    node, number, fields, error = bad
    want = coordinator()
    want.open([1, 2])
    want.accept(1, 1, update(5), NOW)
    got = coordinator()
    got.open([1, 2])
    got.accept(1, 1, update(5), NOW)
    with pytest.raises(error):
        got.accept(node, number, fields, NOW)
    assert got.reply_count == want.reply_count == 1
    assert finish(got).tobytes() == finish(want).tobytes()


def test_an_update_longer_than_the_clip_norm_is_clipped_again_here() -> None:
    c = coordinator()
    c.open([1])
    every = Fields({"b": np.full(3, CLIP, np.int32), "w": np.full((2, 2), -CLIP, np.int32)})
    c.accept(1, 1, every, NOW)
    c.spend()
    moved = c.close(Durable(1))
    length = np.sqrt(sum(float(np.square(part.astype(np.float64)).sum()) for part in moved.values()))
    assert length == pytest.approx(1.0 / 3, rel=1e-6)
    assert length <= 1.0 / 3 * (1 + 1e-7)


def test_the_clock_decides_by_the_time_it_is_given() -> None:
    c = coordinator(deadline=5.0)
    assert c.open([1, 2, 3], now=100.0).deadline == 105.0
    c.accept(1, 1, update(9), now=105.0)
    # A clock that was set back takes no reply away.
    c.accept(2, 1, update(9), now=-1e9)
    for late in (105.1, float("nan"), float("inf")):
        with pytest.raises(Refused, match="deadline"):
            c.accept(3, 1, update(9), now=late)
    assert c.reply_count == 2


def test_a_round_with_too_few_replies_is_aborted_and_changes_nothing() -> None:
    c = coordinator(minimum=2, optimiser="diloco")
    c.open([1, 2, 3])
    c.accept(1, 1, update(CLIP), NOW)
    before = {name: value.copy() for name, value in (c.params | c.state).items()}
    assert c.has_too_few_replies
    c.spend()
    with pytest.raises(RoundAborted):
        c.close(Durable(1))
    with pytest.raises(Refused):
        c.abort(Durable(2))
    c.abort(Durable(1))
    assert c.finished_rounds == 1
    assert all((before[name] == value).all() for name, value in (c.params | c.state).items())
    assert c.open([1, 2, 3]).number == 2


def test_fewer_connected_devices_than_the_minimum_open_no_round() -> None:
    c = coordinator(minimum=2)
    with pytest.raises(Refused, match="Fewer devices"):
        c.open([1])
    assert c.open([1, 2]).number == 1


def test_with_noise_the_number_of_replies_decides_nothing() -> None:
    plan = DevicePlan(population=3, rounds=2, noise_multiplier=1.0)
    c = Coordinator({"b": np.zeros(3, np.float32)}, plan, PrivacyStream(bytes(32), b"x"), RoundSettings(minimum=3))
    c.open([1, 2, 3])
    assert not c.has_too_few_replies
    c.spend()
    assert np.count_nonzero(c.close(Durable(1))["b"]) == 3


def test_a_trimmed_mean_is_for_small_cohorts_without_noise() -> None:
    c = coordinator(trim=0.34, trim_cohort=3)
    c.open([1, 2, 3])
    for node, cells in ((1, CLIP), (2, 8), (3, -5)):
        c.accept(node, 1, update(cells), NOW)
    assert finish(c).tolist() == [8 * fixedpoint.grid_step(1.0), 0, 0]
    with pytest.raises(Refused, match="at most 2 devices"):
        coordinator(trim=0.1, trim_cohort=2).open([1, 2, 3])
    noisy = DevicePlan(population=3, noise_multiplier=1.0)
    with pytest.raises(Refused, match="trimmed mean"):
        Coordinator({"b": np.zeros(3, np.float32)}, noisy, PrivacyStream(bytes(32), b"x"), RoundSettings(trim=0.1))


@pytest.mark.parametrize(
    "bad",
    [
        {"deadline": 0.0}, {"deadline": float("inf")}, {"deadline": float("nan")}, {"minimum": 0}, {"trim": 0.5},
        {"trim": -0.1}, {"trim": float("nan")}, {"trim_cohort": 0}, {"optimiser": "lion"}, {"first_steps": -1},
        {"steps": 3, "first_steps": 4},
    ],
)  # fmt: skip
def test_round_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        RoundSettings(**bad)


def test_local_steps_double_from_the_first_round_on_and_stay_at_the_most() -> None:
    plan, growing = replace(PLAN, rounds=5), RoundSettings(steps=50, first_steps=8)
    c, asked = Coordinator(coordinator().params, plan, None, growing), []
    for number in range(1, 6):
        asked.append(c.open([1, 2, 3]).request.scalars["steps"])
        c.accept(1, number, update(), NOW)
        finish(c, number)
    assert asked == [8, 16, 32, 50, 50]
    assert coordinator(steps=50).open([1]).request.scalars["steps"] == 50


def test_a_silent_device_counts_as_zero() -> None:
    c = coordinator()
    c.open([1, 2, 3])
    c.accept(1, 1, update(CLIP), NOW)
    assert finish(c).tolist() == [pytest.approx(1 / 3), 0, 0]


@pytest.mark.parametrize("proof", [None, 1, Durable(2)])
def test_no_round_closes_before_its_spend_is_durable(proof: Any) -> None:
    c = coordinator()
    c.open([1])
    with pytest.raises(Refused):
        c.close(proof)
    assert c.finished_rounds == 0


def test_states_that_do_not_follow_are_refused() -> None:
    c = coordinator()
    for call in (lambda: c.accept(1, 1, update(), NOW), c.spend, lambda: c.close(Durable(1))):
        with pytest.raises(Refused):
            call()
    c.open([1])
    with pytest.raises(Refused):
        c.open([1])


def test_more_devices_than_declared_and_more_rounds_than_planned_are_refused() -> None:
    c = coordinator()
    with pytest.raises(Refused):
        c.open([1, 2, 3, 4])
    for number in (1, 2):
        c.open([1])
        c.accept(1, number, update(), NOW)
        finish(c, number)
    with pytest.raises(BudgetExceeded):
        c.open([1])


def test_a_plan_that_samples_or_adds_noise_needs_a_stream() -> None:
    with pytest.raises(Refused):
        Coordinator({"b": np.zeros(1, np.float32)}, DevicePlan(population=1, noise_multiplier=1.0), None)


def test_the_request_carries_bf16_and_public_settings_only(toy: Callable[..., Any]) -> None:
    opened = toy().coordinator().open([1, 2])
    assert {array.dtype for array in opened.request.arrays.values()} == {np.dtype(np.uint16)}
    names = ["batch", "learning_rate", "memory_learning_rate", "plan", "protocol", "round", "seed", "steps"]
    assert sorted(opened.request.scalars) == names
