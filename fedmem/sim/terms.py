"""Translate a scenario's federation into the terms of `fedmem.federation`: device plan and round settings.

Invariants
- Both are public and functions of the scenario. A device and its coordinator derive the same ones.
- This module loads neither Flower nor torch.

>>> from fedmem.sim import scenario
>>> device_plan(scenario.load("quickstart")).expected_cohort
8.0
"""

from typing import TYPE_CHECKING

from fedmem.federation import terms
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import RoundSettings, local_steps

if TYPE_CHECKING:
    from fedmem.sim.scenario import Federation, Scenario


def device_plan(scenario: "Scenario") -> DevicePlan:
    """Return the federation's public terms, over all releases.

    Args:
        scenario: the scenario of the run.

    Raises:
        UsageError: a number is out of its range, or the terms contradict each other.
        Refused: the plan adds no noise and does not say `unsafe_no_dp = true` with a reason.
    """
    f = scenario.federation
    return DevicePlan(
        population=scenario.public.devices,
        sampling_rate=f.sampling_rate,
        rounds=f.rounds * f.releases,
        clip=f.clip,
        noise_multiplier=f.noise_multiplier,
        delta=f.delta,
        epsilon_max=f.epsilon_max or None,
        unsafe_no_dp=f.unsafe_no_dp,
        unsafe_reason=f.unsafe_reason,
        cohort_size=f.cohort_size,
    )


def round_settings(scenario: "Scenario", seed: int) -> RoundSettings:
    """Return the settings of every round's request and of the server's step.

    Args:
        scenario: the scenario of the run.
        seed: the seed of the rounds.

    Raises:
        UsageError: a setting is out of its range.
    """
    f = scenario.federation
    return RoundSettings(
        seed,
        f.steps,
        f.batch,
        f.lr,
        f.server_lr,
        f.memory_lr,
        optimiser=f.optimiser,
        momentum=f.momentum,
        trim=f.trim,
        first_steps=f.first_steps,
    )


def steps_by_round(federation: "Federation") -> list[int]:
    """Return the number of local steps of a device in each round, over all releases.

    Args:
        federation: the scenario's federation.
    """
    rounds = range(1, federation.rounds * federation.releases + 1)
    return [local_steps(number, federation.steps, federation.first_steps) for number in rounds]


def rate_left(federation: "Federation", number: int) -> float:
    """Return the factor on a device's learning rates in a round: from 1 down to `final`, on a cosine over all steps.

    A device computes it from public terms and the round's number in the request.

    Args:
        federation: the scenario's federation.
        number: the round, counted from 1 over all releases.
    """
    return terms.rate_left(steps_by_round(federation), federation.final, number)


def local_settings(scenario: "Scenario") -> terms.LocalSettings:
    """Return the settings of a device's local training that no request carries.

    Args:
        scenario: the scenario of the run.
    """
    f = scenario.federation
    return terms.LocalSettings(scenario.anchor.length, f.warmup, f.eps, f.final)
