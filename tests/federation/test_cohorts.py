"""Fixed-size cohorts: who is drawn, and what it costs."""

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fedmem.errors import BudgetExceeded, UsageError
from fedmem.federation import cohorts, device_dp
from fedmem.federation.cohorts import FixedSpend
from fedmem.federation.device_dp import DevicePlan
from fedmem.privacy.accounting_fixed import epsilon_fixed_pld
from fedmem.privacy.rounded_gaussian import STEP_EPSILON
from fedmem.privacy.stream import PrivacyStream

KEY = bytes(range(32))
PLAN = DevicePlan(population=1000, cohort_size=50, rounds=100, noise_multiplier=4.0)


def stream(label: object) -> PrivacyStream:
    return PrivacyStream(KEY, str(label).encode())


def test_a_fixed_cohort_has_the_declared_size_and_comes_from_the_stream_alone() -> None:
    nodes = list(range(1000))
    drawn = device_dp.cohort(nodes, PLAN, stream("a"))
    assert len(drawn) == len(set(drawn)) == 50
    assert drawn == sorted(drawn) == device_dp.cohort(nodes[::-1], PLAN, stream("a"))
    assert drawn != device_dp.cohort(nodes, PLAN, stream("b"))
    np.random.seed(0)  # noqa: NPY002
    assert drawn == device_dp.cohort(nodes, PLAN, stream("a"))


def test_every_set_of_devices_is_as_likely_as_any_other() -> None:
    draws = Counter(tuple(cohorts.fixed([0, 1, 2, 3, 4], 5, 2, stream(n))) for n in range(5000))
    assert set(draws) == set(combinations(range(5), 2))
    # Ten sets, 500 expected each: chi-square with 9 degrees of freedom, 33.7 is its 99.99 % point.
    assert sum((count - 500) ** 2 / 500 for count in draws.values()) < 33.7


def test_the_chance_of_a_device_does_not_grow_when_others_are_away() -> None:
    sizes = [len(cohorts.fixed(list(range(100)), 1000, 50, stream(n))) for n in range(300)]
    # Hypergeometric: mean 5, standard deviation 2.1; one standard error of the mean of 300 is 0.12.
    assert abs(np.mean(sizes) - 5) < 0.6
    assert max(sizes) > 6


def test_the_divisor_of_a_fixed_cohort_is_its_size() -> None:
    assert PLAN.expected_cohort == 50
    assert DevicePlan(population=1000, sampling_rate=0.05, noise_multiplier=1.0).expected_cohort == 50


def oracle(population: int, cohort: int, sigma: float, rounds: int, delta: float) -> float:
    """Wang et al.'s general bound, written out at each order with Python's integers and floats."""
    best, rate, noise = math.inf, cohort / population, sigma / 2
    for order in range(2, 65):
        total = 1.0
        for j in range(2, order + 1):
            power = (j - 1) * j / (2 * noise**2)
            grown = math.exp(power) if power < 700 else math.inf
            factor = min(4 * math.expm1(1 / noise**2), 2 * grown) if j == 2 else 2 * grown
            total += math.comb(order, j) * rate**j * factor
        rdp = rounds * math.log(total) / (order - 1)
        best = min(best, rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return best


@pytest.mark.parametrize("terms", [(1000, 50, 4.0, 100), (1000, 300, 6.0, 5), (100, 10, 3.0, 20)])
def test_the_gate_is_the_bound_written_out_and_above_the_figure(terms: tuple[int, int, float, int]) -> None:
    bound = cohorts.fixed_epsilon_bound(FixedSpend(*terms), 1e-5)
    assert bound == pytest.approx(oracle(*terms, 1e-5) + terms[3] * STEP_EPSILON, rel=1e-9)
    assert cohorts.fixed_epsilon(FixedSpend(*terms), 1e-5) <= bound + 1e-9


def test_everyone_every_round_is_the_gaussian_mechanism_with_twice_the_sensitivity() -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    exact = dp_accounting.pld.PLDAccountant()
    exact.compose(dp_accounting.GaussianDpEvent(8.0 / 2), 10)
    got = cohorts.fixed_epsilon(FixedSpend(20, 20, 8.0, 10), 1e-5)
    assert got == pytest.approx(exact.get_epsilon(1e-5), abs=1e-3)


def test_without_the_library_the_figure_is_the_bound_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spend = FixedSpend(1000, 50, 4.0, 100)
    tight = cohorts.fixed_epsilon(spend, 1e-5)
    assert cohorts.fixed_accounting(spend) == cohorts.FIXED_PLD
    monkeypatch.setattr(cohorts, "find_spec", lambda _: None)
    assert cohorts.fixed_accounting(spend) == cohorts.FIXED_RDP
    assert cohorts.fixed_epsilon(spend, 1e-5) == cohorts.fixed_epsilon_bound(spend, 1e-5) > 2 * tight


def test_losses_too_large_for_a_grid_are_bounded_without_one() -> None:
    spend = FixedSpend(1000, 500, 0.01, 10**4)
    assert cohorts.fixed_accounting(spend) == cohorts.FIXED_RDP
    assert 1e5 < cohorts.fixed_epsilon(spend, 1e-5) < math.inf


def test_a_grid_fits_where_rdp_says_thousands() -> None:
    """Rare and large losses, of which RDP sees the largest only; a coarser grid bounds them well."""
    spend = FixedSpend(1000, 1, 0.5, 1000)
    assert cohorts.fixed_epsilon_bound(spend, 1e-5) > 2900
    fine = epsilon_fixed_pld(0.001, 0.5, 1000, 1e-5, grid=1e-3)
    assert fine <= cohorts.fixed_epsilon(spend, 1e-5) <= 1.01 * fine < 120


def test_the_figure_of_a_noisy_federation_fell() -> None:
    """Before, RDP stated 2.49 here; an attack that repeats its direction shows 1.10."""
    assert cohorts.fixed_epsilon(FixedSpend(1000, 50, 4.0, 100), 1e-5) == pytest.approx(1.198, abs=1e-3)


@pytest.mark.parametrize(("terms", "want"), [((10, 5, 1.0, 0), 0.0), ((10, 5, 0.0, 1), math.inf)])
def test_edge_cases(terms: tuple[int, int, float, int], want: float) -> None:
    assert (
        cohorts.fixed_epsilon(FixedSpend(*terms), 1e-5) == cohorts.fixed_epsilon_bound(FixedSpend(*terms), 1e-5) == want
    )


def test_figures_name_what_they_compare() -> None:
    fixed = device_dp.figures(PLAN, rounds=100)
    assert (fixed.adjacency, fixed.readers) == (
        cohorts.REPLACE,
        cohorts.fixed_epsilon(FixedSpend(1000, 50, 4.0, 100), 1e-5),
    )
    assert (fixed.accounting, math.isinf(fixed.coordinator)) == (cohorts.FIXED_PLD, True)
    poisson = device_dp.figures(DevicePlan(population=9, sampling_rate=0.5, noise_multiplier=4.0), rounds=1)
    assert (poisson.adjacency, poisson.accounting) == (cohorts.ADD_OR_REMOVE, cohorts.POISSON_PLD)
    hopeless = device_dp.figures(DevicePlan(population=9, noise_multiplier=0.01), rounds=1)
    assert hopeless.accounting == cohorts.POISSON_RDP


def test_the_budget_gate_counts_fixed_cohorts() -> None:
    limit = cohorts.fixed_epsilon(FixedSpend(1000, 50, 4.0, 10), 1e-5)
    plan = DevicePlan(**{**PLAN.to_dict(), "epsilon_max": limit})
    device_dp.check_budget(plan, 10)
    with pytest.raises(BudgetExceeded):
        device_dp.check_budget(plan, 11)


def test_the_spend_of_a_fixed_cohort_says_all_that_its_figure_needs() -> None:
    spend = device_dp.spend(PLAN, rounds=3).to_dict()
    assert spend.pop("mechanism") == cohorts.MECHANISM
    assert spend == {"population": 1000, "cohort": 50, "noise_multiplier": 4.0, "steps": 3}


@pytest.mark.parametrize("bad", [{"cohort_size": -1}, {"cohort_size": 1001}, {"cohort_size": 5, "sampling_rate": 0.5}])
def test_a_cohort_that_contradicts_itself_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DevicePlan(population=1000, noise_multiplier=1.0, **bad)
