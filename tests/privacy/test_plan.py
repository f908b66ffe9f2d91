from dataclasses import FrozenInstanceError, replace

import pytest

from fedmem.errors import Refused, UsageError
from fedmem.privacy.plan import PRECISION, PrivacyPlan

PLAN = PrivacyPlan(
    sampling_rate=0.1, steps=60, clip=0.1, noise_multiplier=1.0, divisor=40.0, delta=1e-5, record_cap=1000
)


@pytest.mark.parametrize("target", [2.0, 8.0])
def test_calibrated_noise_is_the_smallest_that_reaches_the_target(target):
    plan = PLAN.calibrate(target)
    assert plan.epsilon() <= target
    assert replace(plan, noise_multiplier=plan.noise_multiplier * (1 - 3 * PRECISION)).epsilon() > target
    assert replace(plan, noise_multiplier=1.0) == PLAN


def test_a_target_that_no_noise_reaches_is_refused():
    with pytest.raises(Refused, match="No noise"):
        PLAN.calibrate(1e-7)


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan"), float("inf")])
def test_a_target_must_be_a_finite_number_above_zero(target):
    with pytest.raises(UsageError):
        PLAN.calibrate(target)


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"sampling_rate": float("nan")},
        {"steps": 0},
        {"steps": 2.5},
        {"steps": True},
        {"steps": 100_001},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": float("inf")},
        {"divisor": 0.0},
        {"delta": 0.0},
        {"delta": float("nan")},
        {"record_cap": 0},
        {"record_cap": 10.0},
    ],
    ids=lambda change: next(iter(change.items())).__repr__(),
)
def test_a_plan_without_meaning_is_refused(change):
    with pytest.raises(UsageError):
        replace(PLAN, **change)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_norm_that_is_none_is_refused(clip):
    with pytest.raises(Refused, match="clip norm") as caught:
        replace(PLAN, clip=clip)
    assert caught.value.exit_code == 4


def test_delta_must_suit_the_declared_cap():
    assert replace(PLAN, record_cap=10_000).delta == 1e-5
    with pytest.raises(Refused, match="delta"):
        replace(PLAN, record_cap=10_001)


def test_a_plan_is_frozen_and_survives_json():
    with pytest.raises(FrozenInstanceError):
        PLAN.clip = 1.0  # type: ignore[misc]
    assert PrivacyPlan.from_dict(PLAN.to_dict()) == PLAN
    for wrong in ({"clip": 1.0}, PLAN.to_dict() | {"extra": 1}):
        with pytest.raises(UsageError):
            PrivacyPlan.from_dict(wrong)


def test_no_noise_means_no_privacy():
    assert replace(PLAN, noise_multiplier=0.0).epsilon() == float("inf")
