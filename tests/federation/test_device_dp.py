import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedmem.errors import BudgetExceeded, Refused, UsageError
from fedmem.federation import device_dp, fixedpoint
from fedmem.federation.device_dp import DevicePlan
from fedmem.privacy import accounting
from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.stream import PrivacyStream

KEY = bytes(range(32))
PLAN = DevicePlan(population=1000, sampling_rate=0.05, rounds=50, clip=0.5, noise_multiplier=1.1)
WIDE = {"a": (300, 200), "b": (40_000,)}


def empty_round(plan: DevicePlan, label: bytes = b"round-1") -> np.ndarray:
    mean = device_dp.noisy_mean(fixedpoint.empty_sums(WIDE), plan, PrivacyStream(KEY, label))
    return np.concatenate([part.ravel() for part in mean.values()]).astype(np.float64)


def off_by(plan: DevicePlan, noise: np.ndarray) -> float:
    want = plan.noise_multiplier * plan.clip / plan.expected_cohort
    return abs(noise.std() / want - 1)


def test_an_empty_round_is_noise_of_the_declared_size() -> None:
    noise = empty_round(PLAN)
    # 100,000 coordinates: one standard error of the ratio is 0.22 %.
    assert off_by(PLAN, noise) < 0.01
    assert abs(noise.mean()) < 5 * noise.std() / math.sqrt(noise.size)
    assert (noise != 0).all()


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.98, 1.02, 1 / 50])
def test_noise_of_another_size_would_be_noticed(factor: float) -> None:
    assert off_by(PLAN, empty_round(PLAN) * factor) > 0.01


def test_every_round_has_noise_of_its_own(toy: Callable[..., Any]) -> None:
    _, one, _ = toy(noise_multiplier=1.0, texts=[[], [], [], []]).run(until=1)
    _, two, _ = toy(noise_multiplier=1.0, texts=[[], [], [], []]).run(until=2)
    start = toy().coordinator().params["w"]
    first, second = one.params["w"] - start, two.params["w"] - one.params["w"]
    assert not np.isclose(first, second).any()


def test_a_plan_without_noise_must_say_so_and_why() -> None:
    with pytest.raises(Refused, match="unsafe_no_dp"):
        DevicePlan(population=8)
    with pytest.raises(Refused, match="unsafe_reason"):
        DevicePlan(population=8, unsafe_no_dp=True, unsafe_reason="  ")
    assert DevicePlan(population=8, unsafe_no_dp=True, unsafe_reason="a test").unsafe_no_dp


@pytest.mark.parametrize(
    "change",
    [
        {"population": 0}, {"sampling_rate": 0.0}, {"sampling_rate": 1.1}, {"sampling_rate": math.nan},
        {"noise_multiplier": -1.0}, {"noise_multiplier": math.nan},
        {"delta": 0.0}, {"delta": 1.0}, {"epsilon_max": 0.0}, {"rounds": -1},
    ],
)  # fmt: skip
def test_a_plan_with_a_number_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DevicePlan(**{**PLAN.to_dict(), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 0.0}, {"clip": math.inf}, {"clip": math.nan}, {"clip": -1.0}, {"clip": 1e-320},
        {"population": 2**40}, {"noise_multiplier": 1e-4}, {"noise_multiplier": 1e6},
    ],
)  # fmt: skip
def test_a_plan_without_a_grid_for_its_sum_and_noise_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        DevicePlan(**{**PLAN.to_dict(), **change})
    assert caught.value.exit_code == 4


def test_noise_is_added_in_cells_before_anything_is_decoded() -> None:
    """The noisy sum of a round is an integer number of cells in every coordinate."""
    step, label = fixedpoint.grid_step(PLAN.clip), b"cells"
    for cells in (0, 12345):
        sums = {"a": np.full(1000, cells, np.int64)}
        noisy = device_dp._noisy(sums, PLAN, PrivacyStream(KEY, label))["a"]
        mean = device_dp.noisy_mean(sums, PLAN, PrivacyStream(KEY, label))["a"]
        assert noisy.dtype == np.int64
        assert (mean == (noisy * step / PLAN.expected_cohort).astype(np.float32)).all()
    assert (noisy - 12345 == device_dp._noisy({"a": sums["a"] * 0}, PLAN, PrivacyStream(KEY, label))["a"]).all()


def test_more_coordinates_than_the_error_bound_covers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_dp, "MOST_VALUES", 99_999)
    with pytest.raises(Refused, match="too many coordinates"):
        empty_round(PLAN)


def test_a_plan_survives_json_and_its_digest_binds_every_field() -> None:
    assert DevicePlan.from_dict(PLAN.to_dict()) == PLAN
    changed = {**PLAN.to_dict(), "clip": 0.6}
    assert DevicePlan.from_dict(changed).digest() != PLAN.digest()
    with pytest.raises(UsageError):
        DevicePlan.from_dict({**PLAN.to_dict(), "secret": 1})


def test_two_figures_are_always_given() -> None:
    got = device_dp.figures(PLAN, rounds=10)
    assert got.readers == accounting.epsilon_pld([SpendEvent(0.05, 1.1, 10)], 1e-5)
    assert 0 < got.readers < 10
    assert math.isinf(got.coordinator)
    assert got.reason == ""
    assert device_dp.figures(PLAN, rounds=0).readers == 0


def test_an_unsafe_plan_claims_nothing_and_says_why() -> None:
    got = device_dp.figures(DevicePlan(population=8, unsafe_no_dp=True, unsafe_reason="few devices"), rounds=1)
    assert math.isinf(got.readers)
    assert got.reason == "unsafe_no_dp = true: few devices"


def test_the_budget_stops_before_the_round(toy: Callable[..., Any]) -> None:
    two = accounting.epsilon_rdp([SpendEvent(1.0, 5.0, 2)], 1e-5)
    made = toy(noise_multiplier=5.0, epsilon_max=two, rounds=9)
    grid = made.grid()
    with pytest.raises(BudgetExceeded):
        made.run(until=3, grid=grid)
    assert {entry.group for entry in grid.transcript.entries} == {"1", "2"}


def test_a_cohort_is_a_poisson_sample_of_the_declared_rate() -> None:
    sizes = [len(device_dp.cohort(list(range(1000)), PLAN, PrivacyStream(KEY, b"%d" % n))) for n in range(200)]
    # Binomial(1000, 0.05): mean 50, one standard error of the mean of 200 is 0.49.
    assert abs(np.mean(sizes) - 50) < 2.5
    assert 5 < np.std(sizes) < 9
    everyone = DevicePlan(population=3, unsafe_no_dp=True, unsafe_reason="a test")
    assert device_dp.cohort([3, 1, 2], everyone, PrivacyStream(KEY, b"x")) == [1, 2, 3]
