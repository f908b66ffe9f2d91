"""A scenario's federation becomes public terms; learning rates fall over all steps."""

import pytest
from msgspec.structs import replace

from fedmem.errors import Refused, UsageError
from fedmem.federation.rounds import local_steps
from fedmem.sim import scenario
from fedmem.sim.terms import device_plan, local_settings, rate_left, round_settings, steps_by_round
from tests.sim.small import small_scenario


def test_a_rate_falls_over_all_rounds_and_stays_without_a_word():
    f = replace(scenario.load("quickstart").federation, rounds=3, releases=2, final=0.1)
    shares = [rate_left(f, number) for number in range(1, 7)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(0.1)
    assert {rate_left(replace(f, final=1.0), number) for number in range(1, 9)} == {1.0}
    assert rate_left(replace(f, rounds=1, releases=1), 1) == 1


def test_a_rate_falls_with_the_steps_that_are_gone_where_rounds_grow():
    f = replace(scenario.load("quickstart").federation, rounds=4, releases=1, final=0.0, steps=30, first_steps=10)
    assert steps_by_round(f) == [10, 20, 30, 30]
    assert [rate_left(f, number) for number in range(1, 5)] == pytest.approx([1, 0.933, 0.5, 0], abs=1e-3)


def test_a_plan_counts_the_rounds_of_all_releases_and_every_device() -> None:
    plan = device_plan(small_scenario(rounds=3, releases=2, epsilon_max=0.0))
    assert (plan.rounds, plan.population, plan.expected_cohort, plan.epsilon_max) == (6, 3, 3.0, None)
    assert device_plan(small_scenario(cohort_size=2)).expected_cohort == 2


def test_a_request_carries_the_local_settings_and_the_server_its_own() -> None:
    settings = round_settings(
        small_scenario(steps=8, first_steps=2, server_lr=0.5, optimiser="diloco", momentum=0.7), 11
    )
    assert (settings.seed, settings.steps, settings.first_steps) == (11, 8, 2)
    assert (settings.step.optimiser, settings.step.rate, settings.step.momentum) == ("diloco", 0.5, 0.7)


def test_steps_of_all_releases_are_those_of_the_requests() -> None:
    federation = small_scenario(rounds=2, releases=2, steps=8, first_steps=2).federation
    assert steps_by_round(federation) == [local_steps(number, 8, 2) for number in (1, 2, 3, 4)] == [2, 4, 8, 8]


def test_settings_that_no_request_carries() -> None:
    local = local_settings(small_scenario(warmup=3, eps=1e-3, final=0.25))
    assert (local.length, local.warmup, local.eps, local.final) == (48, 3, 1e-3, 0.25)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"clip": -1.0}, Refused), ({"sampling_rate": 1.5}, UsageError), ({"unsafe_reason": " "}, Refused)],
)
def test_terms_out_of_range_are_refused(change: dict[str, object], error: type[Exception]) -> None:
    chosen = small_scenario()
    with pytest.raises(error):
        device_plan(replace(chosen, federation=replace(chosen.federation, **change)))
