"""Spends of several federations under one adjacency: exact figures, their bound, and the JSON form."""

import math

import pytest

from fedmem.errors import VerificationFailed
from fedmem.federation import composition, device_dp
from fedmem.federation.cohorts import FixedSpend
from fedmem.federation.device_dp import DevicePlan
from fedmem.privacy.spend import SpendEvent

EVERYONE = DevicePlan(population=100, rounds=9, noise_multiplier=4.0)
SAMPLED = DevicePlan(population=1000, sampling_rate=0.3, rounds=9, noise_multiplier=1.0)
FIXED = DevicePlan(population=1000, cohort_size=100, rounds=9, noise_multiplier=4.0)


def test_both_kinds_of_cohort_compose_by_pld(monkeypatch: pytest.MonkeyPatch) -> None:
    spends = [device_dp.spend(SAMPLED, 9), device_dp.spend(FIXED, 9)]
    both, alone = composition.epsilon(spends, 1e-5), [composition.epsilon([spend], 1e-5) for spend in spends]
    assert max(alone) < both < sum(alone)
    assert composition.epsilon(spends[::-1], 1e-5) == both
    monkeypatch.setattr(composition, "find_spec", lambda name: None)
    assert both < composition.epsilon(spends, 1e-5)


def test_both_kinds_without_sampling_are_gaussians_of_one_and_two_clip_norms() -> None:
    everyone = DevicePlan(population=50, noise_multiplier=4.0)
    whole = DevicePlan(population=50, cohort_size=50, noise_multiplier=8.0)
    spends = [device_dp.spend(everyone, 3), device_dp.spend(whole, 5)]
    # Both are Gaussian mechanisms of sensitivity over deviation 1/4, so eight rounds of the first are the oracle.
    assert composition.epsilon(spends, 1e-5) == pytest.approx(device_dp.figures(everyone, 8).readers, abs=2e-3)


def test_equal_fixed_cohorts_add_their_rounds_up() -> None:
    halves = [device_dp.spend(FIXED, 4), device_dp.spend(FIXED, 5)]
    assert composition.epsilon(halves, 1e-5) == composition.epsilon([device_dp.spend(FIXED, 9)], 1e-5)


def test_without_the_library_the_bound_is_never_below(monkeypatch: pytest.MonkeyPatch) -> None:
    spends = [[device_dp.spend(plan, 9)] for plan in (EVERYONE, SAMPLED, FIXED)]
    exact = [composition.epsilon(one, 1e-5) for one in spends]
    monkeypatch.setattr(composition, "find_spec", lambda name: None)
    for one, figure in zip(spends, exact, strict=True):
        assert figure <= composition.epsilon(one, 1e-5) < 3 * figure


def test_no_round_costs_nothing_and_a_round_without_noise_everything() -> None:
    for figure in (composition.epsilon, composition.epsilon_bound):
        assert figure([], 1e-5) == 0.0
        assert figure([SpendEvent(0.1, 1.0, 0), FixedSpend(100, 5, 4.0, 0)], 1e-5) == 0.0
        assert math.isinf(figure([SpendEvent(0.1, 1.0, 3), FixedSpend(100, 5, 0.0, 1)], 1e-5))
        assert math.isinf(figure([SpendEvent(0.1, 0.0, 1), FixedSpend(100, 5, 4.0, 1)], 1e-5))


def test_the_json_form_brings_each_kind_back() -> None:
    for plan in (EVERYONE, SAMPLED, FIXED):
        spend = device_dp.spend(plan, 4)
        assert composition.spend_from(spend.to_dict()) == spend
        assert composition.is_sampled(spend) == plan.sampled
    for event in ({"mechanism": "later/9"}, {"mechanism": "fixed-gaussian/1", "cohort": 3}):
        with pytest.raises(VerificationFailed):
            composition.spend_from(event)
