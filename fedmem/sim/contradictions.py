"""Check a scenario for contradictions before any training starts.

Invariants
- A refusal is a UsageError that names the scenario and the settings that do not fit together.
- The device plan, the coordinator and the budget accept every scenario that passes.

    check_scenario(scenario)
"""

from typing import TYPE_CHECKING

from fedmem.errors import BudgetExceeded, Refused, UsageError

if TYPE_CHECKING:
    from fedmem.sim.scenario import Scenario


def check_scenario(scenario: "Scenario") -> None:
    """Check a scenario for faults that would show only later, after the training.

    Args:
        scenario: a scenario whose keys and types are checked already.

    Raises:
        UsageError: the scenario contradicts itself, or its rounds exceed their ε.
    """
    for sentence, holds in (_shape(scenario) | _terms(scenario)).items():
        if holds:
            raise UsageError(f"{scenario.name}: {sentence}.")
    _check_terms(scenario)


def _shape(scenario: "Scenario") -> dict[str, bool]:
    """Return contradictions in text, bank and training: for each sentence, True if it holds."""
    federation, levels = scenario.federation, len(scenario.bank.widths)
    parts = {"anchor", "generic", *(f"level-{n}" for n in range(1, levels + 1))}
    devices = [device for private in scenario.private for device in private.devices]
    phases = (scenario.pretrain, scenario.cotrain)
    pooled = any(phase.pooled for phase in phases)
    return {
        "federation.parts names something that is not " + ", ".join(sorted(parts)): not set(federation.parts) <= parts,
        "training with steps needs a learning rate above 0": any(
            phase.steps > 0 and max(phase.lr, phase.memory_lr) <= 0 for phase in phases
        ),
        "a phase with pooled = true is a run of central training; set federation.rounds = 0": pooled
        and federation.rounds > 0,
        'with source = "chats" devices hold no generated records; remove [[private]]': scenario.public.source == "chats"
        and bool(scenario.private),
        "a topic names a device that does not exist": any(not 0 <= d < scenario.public.devices for d in devices),
        "a topic has more records than learning.record_cap": any(
            private.records > scenario.learning.record_cap for private in scenario.private
        ),
    }


def _terms(scenario: "Scenario") -> dict[str, bool]:
    """Return contradictions in the terms of the rounds: for each sentence, True if it holds."""
    f, noisy = scenario.federation, scenario.federation.noise_multiplier > 0
    return {
        "rounds without noise must say unsafe_no_dp = true and give unsafe_reason": not noisy
        and not (f.unsafe_no_dp and f.unsafe_reason.strip()),
        "unsafe_no_dp = true contradicts a noise_multiplier above 0; remove one of them": noisy and f.unsafe_no_dp,
        "epsilon_max needs a noise_multiplier above 0": not noisy and f.epsilon_max > 0,
        "trim needs rounds without noise: the clip norm does not bound a trimmed mean": noisy and f.trim > 0,
        "cohort_size and a sampling_rate below 1 are two ways to draw devices; keep one": f.cohort_size > 0
        and f.sampling_rate < 1,
        "cohort_size is larger than the number of devices": f.cohort_size > scenario.public.devices,
        "silent and hostile together are above 1": f.silent + f.hostile > 1,
    }


def _check_terms(scenario: "Scenario") -> None:
    """Raise UsageError where the coordinator would refuse the terms, or where all rounds together exceed their ε."""
    # Imported here, since commands that only list scenarios need no numpy.
    from fedmem.federation import device_dp
    from fedmem.federation.rounds import TRIM_TOO_LARGE
    from fedmem.sim.terms import device_plan, round_settings

    try:
        plan = device_plan(scenario)
        settings, largest = round_settings(scenario, 0), plan.cohort_size or plan.population
        if settings.trim and largest > settings.trim_cohort:
            raise UsageError(TRIM_TOO_LARGE.format(settings.trim_cohort))
        device_dp.check_budget(plan, plan.rounds)
    except BudgetExceeded:
        raise UsageError(
            f"{scenario.name}: the rounds exceed epsilon_max at this noise; use fewer, or raise noise_multiplier."
        ) from None
    except (UsageError, Refused) as error:
        raise UsageError(f"{scenario.name}: {error}") from None
