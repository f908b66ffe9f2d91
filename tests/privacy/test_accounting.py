import itertools
import math
import subprocess
import sys

import pytest

from fedmem.errors import UsageError
from fedmem.privacy.accounting import epsilon_pld, epsilon_rdp
from fedmem.privacy.rounded_gaussian import STEP_EPSILON
from fedmem.privacy.spend import SpendEvent

DELTA = 1e-5
SINGLE = [
    [SpendEvent(q, sigma, steps)]
    for q, sigma, steps in itertools.product((0.01, 0.15, 1.0), (0.7, 1.0, 3.0), (1, 10, 80))
]
MIXED = [
    [SpendEvent(0.15, 1.1, 80), SpendEvent(0.25, 2.0, 40)],
    [SpendEvent(0.01, 0.8, 500), SpendEvent(1.0, 5.0, 3), SpendEvent(0.2, 1.5, 20)],
    [SpendEvent(0.1, 1.0, 1)] * 30,
    [SpendEvent(0.5, 6.0, 200), SpendEvent(0.001, 0.6, 1000)],
]


@pytest.mark.parametrize("delta", [1e-5, 1e-7])
@pytest.mark.parametrize("spends", SINGLE + MIXED, ids=lambda spends: f"{len(spends)}-{hash(tuple(spends)) % 10**6}")
def test_rdp_is_never_below_pld(spends, delta):
    exact, bound = epsilon_pld(spends, delta, grid=1e-3), epsilon_rdp(spends, delta)
    assert bound >= exact
    assert bound <= 2.0 * exact + 1.5


def test_rdp_equals_the_closed_form_of_the_gaussian():
    sigma, steps = 2.0, 10
    alphas = range(2, 64)
    expected = min(
        steps * a / (2 * sigma**2) + math.log1p(-1 / a) - (math.log(DELTA) + math.log(a)) / (a - 1) for a in alphas
    )
    found = epsilon_rdp([SpendEvent(1.0, sigma, steps)], DELTA)
    assert found == pytest.approx(expected + steps * STEP_EPSILON, rel=1e-12)


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_each_step_adds_the_error_of_the_sampler(monkeypatch, epsilon):
    spends = [SpendEvent(0.1, 1.0, 30), SpendEvent(0.2, 3.0, 50)]
    whole = epsilon(spends, DELTA)
    monkeypatch.setattr("fedmem.privacy.accounting.STEP_EPSILON", 0.0)
    assert whole - epsilon(spends, DELTA) == pytest.approx(80 * STEP_EPSILON, rel=1e-6)
    assert 80 * STEP_EPSILON < 1e-4


def test_rdp_agrees_with_the_accounting_library():
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    for rate, sigma, steps in ((0.15, 1.1, 80), (0.01, 0.8, 500), (0.5, 2.0, 10)):
        accountant = RdpAccountant(orders=list(range(2, 64)))
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)), steps)
        assert epsilon_rdp([SpendEvent(rate, sigma, steps)], DELTA) == pytest.approx(
            accountant.get_epsilon(DELTA), rel=1e-3
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("rate", "sigma", "steps"), [(0.1, 2.0, 40), pytest.param(0.15, 1.1, 80, marks=pytest.mark.slow)]
)
def test_opacus_prv_is_a_little_above_pld(rate, sigma, steps):
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, steps)]
    gap = accountant.get_epsilon(DELTA, eps_error=5e-4) - epsilon_pld([SpendEvent(rate, sigma, steps)], DELTA)
    assert 0.0 <= gap <= 1.5e-3


@pytest.mark.parametrize(("rate", "sigma", "steps"), [(0.15, 1.107, 80), (0.15, 2.91, 80), (0.01, 0.8, 1000)])
def test_the_reference_of_prv_accounting_agrees(rate, sigma, steps):
    """Gopi, Lee and Wutschitz 2021, by their own package: PLD lies within its proven bounds."""
    from prv_accountant.dpsgd import DPSGDAccountant

    reference = DPSGDAccountant(sigma, rate, steps, eps_error=1e-2, delta_error=1e-10)
    low, middle, high = reference.compute_epsilon(DELTA, steps)
    exact = epsilon_pld([SpendEvent(rate, sigma, steps)], DELTA)
    assert low <= exact <= high
    assert exact == pytest.approx(middle, abs=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gdp_would_understate():
    """The negative control: central limit accounting, which we refuse, lies below PLD."""
    from opacus.accountants import GaussianAccountant

    accountant = GaussianAccountant()
    accountant.history = [(0.5, 0.01, 100)]
    assert accountant.get_epsilon(DELTA) < 0.9 * epsilon_pld([SpendEvent(0.01, 0.5, 100)], DELTA)


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_edges(epsilon):
    assert epsilon([], DELTA) == 0.0
    assert epsilon([SpendEvent(0.1, 1.0, 0), SpendEvent(0.0, 1.0, 9)], DELTA) == 0.0
    assert epsilon([SpendEvent(0.1, 0.0, 1)], DELTA) == math.inf
    assert 100.0 < epsilon([SpendEvent(0.5, 1e-3, 10**6)], DELTA) < math.inf
    for delta in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(UsageError):
            epsilon([SpendEvent(0.1, 1.0, 1)], delta)


@pytest.mark.parametrize("epsilon", [epsilon_pld, epsilon_rdp])
def test_order_and_splitting_change_nothing_and_more_costs_more(epsilon):
    one, two = SpendEvent(0.1, 1.0, 20), SpendEvent(0.2, 2.0, 10)
    both = epsilon([one, two], DELTA)
    assert both == epsilon([two, SpendEvent(0.1, 1.0, 15), SpendEvent(0.1, 1.0, 5)], DELTA)
    assert both > epsilon([one], DELTA) > epsilon([SpendEvent(0.1, 1.0, 19)], DELTA)


def test_the_gate_needs_numpy_alone():
    program = (
        "import sys, fedmem.privacy.accounting as a, fedmem.privacy.plan, fedmem.privacy.ledger, fedmem.privacy.stream;"
        "a.epsilon_rdp([a.SpendEvent(0.1, 1.0, 3)], 1e-5);"
        "print(sorted({'torch', 'dp_accounting', 'scipy', 'opacus'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
