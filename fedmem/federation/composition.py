"""Compose the spends of several federations, for one device, under one adjacency.

Invariants
- The common adjacency is **zero-out**: in all rounds of all federations the device's updates count, or zeros stand in
  their place. Every spend bounds it as it is, so nothing is lost by the conversion:

    | adjacency of a spend | why its ε holds under zero-out |
    |---|---|
    | add or remove one device (Poisson cohorts) | a device that sends zeros leaves the sum as if it were not there |
    | replace one device (cohorts of fixed size) | zeros are one of the updates that replacing allows |

- `epsilon` is the figure that is shown and compared with budgets; `epsilon_bound` is never below it and needs numpy
  alone. Order has no effect.
- Spends of both kinds together are composed as dominating pairs: the PLD of each round bounds both directions of
  zero-out, and PLDs compose by convolution.

    | spends | ε |
    |---|---|
    | none, or no round | 0 |
    | a round without noise | inf |

>>> mixed = [SpendEvent(0.1, 1.0, 50), FixedSpend(1000, 50, 4.0, 100)]
>>> 0 < epsilon(mixed[:1], 1e-5) < epsilon(mixed, 1e-5) <= epsilon_bound(mixed, 1e-5)
True
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypeVar

from fedmem.errors import VerificationFailed
from fedmem.federation import cohorts
from fedmem.federation.cohorts import FixedSpend
from fedmem.privacy import accounting
from fedmem.privacy.accounting import FINE
from fedmem.privacy.accounting_fixed import fixed_pld
from fedmem.privacy.rounded_gaussian import STEP_EPSILON
from fedmem.privacy.spend import SpendEvent

Spend = SpendEvent | FixedSpend
Kind = TypeVar("Kind", SpendEvent, FixedSpend)
ZERO_OUT = "in all rounds of all federations, the device's updates count or are zeros"


def spend_from(event: Mapping[str, Any]) -> Spend:
    """Return the spend of its JSON form.

    Args:
        event: the JSON form, as `SpendEvent.to_dict` or `FixedSpend.to_dict` returns it.

    Raises:
        VerificationFailed: the mechanism is unknown or a value is impossible.
    """
    if event.get("mechanism") != cohorts.MECHANISM:
        return SpendEvent.from_dict(event)
    try:
        return FixedSpend(**{name: value for name, value in event.items() if name != "mechanism"})
    except TypeError as error:
        raise VerificationFailed("A ledger holds an impossible spend; it was edited or damaged.") from error


def is_sampled(spend: Spend) -> bool:
    """Return True if the rounds of this spend draw their cohort at random.

    Args:
        spend: the rounds.
    """
    return isinstance(spend, FixedSpend) or spend.sampling_rate < 1


def epsilon(spends: Iterable[Spend], delta: float) -> float:
    """Return ε at `delta` of all spends together, under zero-out.

    Guarantees: an upper bound, by PLD (`accounting.epsilon_pld` for Poisson cohorts, `accounting_fixed` for cohorts of
    fixed size, the convolution of both where a device met both). It is `epsilon_bound` without `dp-accounting`, and
    where that is above `accounting.HOPELESS`.

    Args:
        spends: the spends, each of any number of rounds.
        delta: strictly between 0 and 1.
    """
    poisson, fixed = _split(spends)
    bound = epsilon_bound([*poisson, *fixed], delta)
    if not find_spec("dp_accounting") or bound > accounting.HOPELESS:
        return bound
    if not fixed:
        exact = accounting.epsilon_pld(poisson, delta)
    elif not poisson and len(fixed) == 1:
        exact = cohorts.fixed_epsilon(fixed[0], delta)
    else:
        exact = _convolved(frozenset(_added_up(poisson)), frozenset(fixed), delta)
    return min(exact, bound)  # PLD's grid may round up past the bound


@lru_cache(maxsize=64)
def _convolved(poisson: frozenset[SpendEvent], fixed: frozenset[FixedSpend], delta: float) -> float:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism, identity

    composed = identity(FINE)
    for event in poisson:
        one = from_gaussian_mechanism(
            event.noise_multiplier, value_discretization_interval=FINE, sampling_prob=event.sampling_rate
        )
        composed = composed.compose(one.self_compose(event.steps))
    for spend in fixed:
        one = fixed_pld(spend.cohort / spend.population, spend.noise_multiplier)
        composed = composed.compose(one.self_compose(spend.steps))
    return float(composed.get_epsilon_for_delta(delta)) + _sampler_epsilon([*poisson, *fixed])


def epsilon_bound(spends: Iterable[Spend], delta: float) -> float:
    """Return an upper bound on `epsilon` by Rényi DP in numpy alone.

    Guarantees: (ε, δ)-DP under zero-out, by Mironov et al. 2019 for Poisson cohorts and by Wang et al. 2019, Theorem 9,
    for cohorts of fixed size. The edge cases are those of the module's table.

    Args:
        spends: the spends, each of any number of rounds.
        delta: strictly between 0 and 1.
    """
    poisson, fixed = _split(spends)
    if not fixed:
        return accounting.epsilon_rdp(poisson, delta)
    total = accounting.composed_rdp(poisson)[: len(cohorts.ORDERS)]  # those orders are the first ones of `ORDERS`
    for spend in fixed:
        total = total + cohorts.fixed_rdp(spend)
    return accounting.epsilon_of_rdp(total, cohorts.ORDERS, delta) + _sampler_epsilon([*poisson, *fixed])


def _sampler_epsilon(spends: Iterable[Spend]) -> float:
    return STEP_EPSILON * sum(spend.steps for spend in spends)


def _split(spends: Iterable[Spend]) -> tuple[list[SpendEvent], list[FixedSpend]]:
    """Return the Poisson spends, and the spends of fixed cohorts with equal ones added up. Both have rounds."""
    some = [spend for spend in spends if spend.steps]
    return [spend for spend in some if isinstance(spend, SpendEvent)], _added_up(
        [spend for spend in some if isinstance(spend, FixedSpend)]
    )


def _added_up(spends: Sequence[Kind]) -> list[Kind]:
    rounds = dict[Kind, int]()
    for spend in spends:
        kind = replace(spend, steps=0)
        rounds[kind] = rounds.get(kind, 0) + spend.steps
    return [replace(kind, steps=steps) for kind, steps in rounds.items()]
