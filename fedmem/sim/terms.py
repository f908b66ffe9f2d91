"""A scenario's federation in the words of `fedmem.federation`: the device plan, and the settings of every round.

Invariants
- Both are public and a function of the scenario alone; a device and its coordinator derive the same ones.
- Nothing here loads Flower or torch.

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
    """The federation's public terms, over all releases."""
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
    """What every round's request and the server's step are made of. Raises UsageError."""
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
    """Local steps of a device in every round, over all releases."""
    rounds = range(1, federation.rounds * federation.releases + 1)
    return [local_steps(number, federation.steps, federation.first_steps) for number in rounds]


def rate_left(federation: "Federation", number: int) -> float:
    """Factor on a device's learning rates in round `number`, from 1: from 1 to `final` on a cosine over all steps.

    A device works it out from public terms and the number in the request.
    """
    return terms.rate_left(steps_by_round(federation), federation.final, number)


def local_settings(scenario: "Scenario") -> terms.LocalSettings:
    """Return the settings of a device's local training that no request carries."""
    f = scenario.federation
    return terms.LocalSettings(scenario.anchor.length, f.warmup, f.eps, f.final)
