"""The PLD of fixed-size samples against closed forms, quadrature, and brackets that share no code with it."""

import itertools
import math

import numpy as np
import pytest
from scipy.signal import fftconvolve
from scipy.stats import norm

from fedmem.privacy.accounting_fixed import epsilon_fixed_pld, fixed_deltas, fixed_pld

DELTA = 1e-5
ROUNDS = [(0.05, 4.0, 100), (0.05, 2.0, 100), (0.1, 1.0, 20), (0.3, 6.0, 5), (0.5, 3.0, 8), (0.9, 5.0, 3)]


def divergence(a, rate, sigma, *, swapped=False):
    """sup over S of X(S) - a Y(S) by quadrature, for a pair of neighbouring populations that a federation can have.

    All other devices send -C in a direction and device 1 sends C in one population and -C in the other.
    """
    shift = 2 / sigma
    x = np.linspace(-12, 12 + shift, 1_000_001)
    mixture, alone = (1 - rate) * norm.pdf(x) + rate * norm.pdf(x - shift), norm.pdf(x)
    one, two = (alone, mixture) if swapped else (mixture, alone)
    return np.trapezoid(np.maximum(0.0, one - a * two), x)


@pytest.mark.parametrize(("rate", "sigma"), [(0.05, 2.0), (0.3, 1.0), (0.5, 6.0), (1.0, 3.0)])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 0.5, 1.0])
def test_one_round_is_as_bad_as_the_worst_neighbours_and_no_worse(rate, sigma, epsilon):
    above, below = fixed_deltas(np.array([epsilon, -epsilon]), rate, sigma)
    assert above == pytest.approx(divergence(math.exp(epsilon), rate, sigma), rel=1e-7, abs=1e-9)
    assert below == pytest.approx(divergence(math.exp(-epsilon), rate, sigma, swapped=True), rel=1e-7, abs=1e-9)
    # The other order of the same two populations is covered too.
    assert above >= divergence(math.exp(epsilon), rate, sigma, swapped=True) - 1e-9
    assert below >= divergence(math.exp(-epsilon), rate, sigma) - 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_no_population_of_random_devices_passes_the_curve(seed):
    """All samples of a small population, each a Gaussian: the two mixtures compared by quadrature."""
    random = np.random.default_rng(seed)
    devices, drawn, sigma = 5, int(random.integers(1, 5)), float(random.uniform(0.7, 3.0))
    values = random.choice([-1.0, 1.0, 0.3, -0.6], devices)
    other = values.copy()
    other[0] = -values[0] if seed % 2 else random.uniform(-1, 1)
    grid = np.linspace(-6 - 12 * sigma, 6 + 12 * sigma, 20_001)

    def density(population):
        sums = [sum(population[list(chosen)]) for chosen in itertools.combinations(range(devices), drawn)]
        return np.mean([norm.pdf(grid, total, sigma) for total in sums], axis=0)

    x, y = density(values), density(other)
    for epsilon in (-2.0, -0.5, 0.0, 0.2, 1.0, 3.0):
        for one, two in ((x, y), (y, x)):
            least = np.maximum(0.0, one - math.exp(epsilon) * two).sum() * (grid[1] - grid[0])
            assert least <= fixed_deltas(np.array([epsilon]), drawn / devices, sigma)[0] + 1e-9


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 0.3), (0.05, 4.0), (0.5, 1.0), (1.0, 2.0)])
def test_the_curve_is_that_of_some_pair_of_distributions(rate, sigma):
    """Convex in exp(ε), decreasing, between max(0, 1 - exp(ε)) and 1: what dominating pairs need."""
    a = np.concatenate([np.linspace(0.01, 1.0, 500), np.linspace(1.0, 5.0, 500)[1:]])
    deltas = fixed_deltas(np.log(a), rate, sigma)
    slopes = np.diff(deltas) / np.diff(a)
    assert (np.diff(slopes) >= -1e-9).all()
    assert (slopes <= 0).all()
    assert (deltas >= np.maximum(0, 1 - a) - 1e-12).all()
    assert fixed_deltas(np.array([-700.0, 700.0]), rate, sigma) == pytest.approx([1.0, 0.0], abs=1e-12)


def gaussian_epsilon(sensitivity):
    """Balle and Wang 2018, Theorem 8: the exact ε of one Gaussian with standard deviation 1, by bisection."""
    low, high = 0.0, 200.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        one = norm.cdf(sensitivity / 2 - middle / sensitivity)
        delta = one - math.exp(middle) * norm.cdf(-sensitivity / 2 - middle / sensitivity)
        low, high = (middle, high) if delta > DELTA else (low, middle)
    return high


@pytest.mark.parametrize(("sigma", "rounds"), [(8.0, 10), (2.0, 1), (20.0, 400), (0.5, 2)])
def test_everyone_every_round_is_the_closed_form_of_the_gaussian(sigma, rounds):
    exact = gaussian_epsilon(2 * math.sqrt(rounds) / sigma)
    assert exact - 1e-6 <= epsilon_fixed_pld(1.0, sigma, rounds, DELTA) <= exact + 1e-3


def composed_delta(losses, probabilities, infinite, rounds, epsilon, grid):
    """δ of `rounds` independent losses on a grid, by FFT, with what leaves the array counted as `infinite`."""
    mass, first, offset = probabilities, probabilities, losses
    for _ in range(rounds - 1):
        mass, offset = np.maximum(0, fftconvolve(mass, first)), offset + losses
    values = grid * (offset + np.arange(len(mass)))
    above = values > epsilon
    return float((mass[above] * -np.expm1(epsilon - values[above])).sum()) + 1 - (1 - infinite) ** rounds


def bracket(rate, sigma, rounds, epsilon, grid=2e-3):
    """Lower and upper δ of the dominating pair, from its definition: its losses rounded down, and rounded up.

    The pair's loss is log(mixture / Q) at x where that is positive, with the mixture's mass; the negative of it with
    Q's mass; and 0 with the rest.
    """
    shift = 2 / sigma
    x = np.linspace(shift / 2, shift + 9, 400_001)
    loss = np.log1p(rate * np.expm1(shift * x - shift**2 / 2))
    plus = np.diff((1 - rate) * norm.cdf(x) + rate * norm.cdf(x - shift))
    minus = np.diff(norm.cdf(x))
    found = []
    for down in (True, False):
        low = np.floor if down else np.ceil
        ends = (loss[:-1], loss[1:]) if down else (loss[1:], loss[:-1])
        cells = [*low(ends[0] / grid).astype(int), *low(-ends[1] / grid).astype(int), 0]
        weights = np.array([*plus, *minus, 1 - plus.sum() - minus.sum()])
        start = min(cells)
        probabilities = np.bincount(np.array(cells) - start, weights)
        found.append(composed_delta(start, probabilities, 0.0, rounds, epsilon, grid))
    return found


@pytest.mark.parametrize(("rate", "sigma", "rounds"), ROUNDS[2:])
def test_many_rounds_lie_in_an_independent_bracket(rate, sigma, rounds):
    epsilon = epsilon_fixed_pld(rate, sigma, rounds, DELTA)
    low, high = bracket(rate, sigma, rounds, epsilon)
    assert low < DELTA < high < 1.5 * low


@pytest.mark.parametrize(("rate", "sigma", "rounds"), ROUNDS)
def test_it_lies_between_an_attack_and_the_bound_of_before(rate, sigma, rounds):
    """The attack of `divergence` in every round, with its losses rounded down, in both orders of the populations.

    Its pair is that of Poisson samples with half the noise. Above stands the figure of before: RDP, Wang, Balle and
    Kasiviswanathan 2019, Theorem 27.
    """
    import dp_accounting
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
    from dp_accounting.rdp import RdpAccountant

    exact = epsilon_fixed_pld(rate, sigma, rounds, DELTA)
    attack = from_gaussian_mechanism(sigma / 2, sampling_prob=rate, pessimistic_estimate=False, use_connect_dots=False)
    low = attack.self_compose(rounds).get_epsilon_for_delta(DELTA)
    assert 0.85 * exact < low <= exact
    before = RdpAccountant(list(range(2, 129)), dp_accounting.NeighboringRelation.REPLACE_ONE)
    gaussian = dp_accounting.GaussianDpEvent(sigma / 2)
    before.compose(dp_accounting.SampledWithoutReplacementDpEvent(1000, round(1000 * rate), gaussian), rounds)
    assert exact < before.get_epsilon(DELTA)


def test_more_devices_more_rounds_and_less_noise_cost_more():
    by_rate = [epsilon_fixed_pld(rate, 3.0, 10, DELTA) for rate in (0.01, 0.1, 0.3, 0.6, 0.99, 1.0)]
    by_rounds = [epsilon_fixed_pld(0.2, 3.0, rounds, DELTA) for rounds in (0, 1, 2, 10, 50)]
    by_noise = [epsilon_fixed_pld(0.2, sigma, 10, DELTA) for sigma in (10.0, 3.0, 1.0, 0.6)]
    for figures in (by_rate, by_rounds, by_noise):
        assert figures == sorted(figures)
        assert len(set(figures)) == len(figures)
    assert by_rounds[0] == 0.0


def test_a_coarser_grid_is_never_below():
    for rate, sigma, rounds in ROUNDS:
        fine, coarse = (epsilon_fixed_pld(rate, sigma, rounds, DELTA, grid) for grid in (1e-4, 1e-2))
        assert fine <= coarse + 1e-9 <= 1.02 * fine


def test_rounds_compose_with_other_rounds():
    one, two = fixed_pld(0.1, 2.0), fixed_pld(0.1, 2.0)
    assert one.compose(two).get_epsilon_for_delta(DELTA) == pytest.approx(
        epsilon_fixed_pld(0.1, 2.0, 2, DELTA), abs=1e-4
    )
