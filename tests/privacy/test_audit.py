"""The audit's lower bound against the definition of its theorem, against linear programs, and on mechanisms we know."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom, norm

from fedmem.privacy.accounting import epsilon_pld
from fedmem.privacy.audit import SHARES, claim_p_value, is_refuted, lower_bounds, p_value, refuted_epsilon
from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.tradeoff import EPSILONS_E, curve

DELTA = 1e-5
GAUSSIAN = {2.0: SpendEvent(1.0, 1.9938, 1), 8.0: SpendEvent(1.0, 0.60023, 1)}
"""A Gaussian mechanism by its ε."""
CLAIM = SpendEvent(0.5, 3.13, 8)


def test_the_gaussians_have_their_epsilon():
    for epsilon, spend in GAUSSIAN.items():
        assert epsilon_pld([spend], DELTA) == pytest.approx(epsilon, abs=2e-3)


def most_likely(claim, canaries, guesses, right):
    """The greatest P[C >= right] of all distributions of C that step 2 of the proof allows, by a linear program."""
    counts = np.arange(guesses + 1)
    rows, limits = [], []
    for j in range(guesses):
        detection = np.where(counts >= j + 1, counts, 0) / canaries
        alarms = np.where(counts >= j, guesses - counts, 0) / canaries
        for epsilon, delta in zip(EPSILONS_E[600:1401:8], claim.deltas_E[600:1401:8], strict=True):
            rows.append(detection - math.exp(epsilon) * alarms)
            limits.append(delta)
    done = linprog(np.where(counts >= right, -1.0, 0.0), rows, limits, np.ones((1, guesses + 1)), [1.0], bounds=(0, 1))
    return -done.fun


@pytest.mark.parametrize(("m", "g", "v"), [(10, 10, 8), (12, 6, 6), (20, 12, 9), (15, 15, 9), (5, 1, 1)])
@pytest.mark.parametrize("spend", [GAUSSIAN[2.0], CLAIM])
def test_the_recursion_solves_the_linear_program_of_the_theorem(m, g, v, spend):
    exact = most_likely(curve(spend), m, g, v)
    assert p_value(curve(spend), m, g, v) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("spend", GAUSSIAN.values())
@pytest.mark.parametrize("right", [520, 560, 600, 700, 800])
def test_no_p_value_is_below_that_of_the_best_guesses(spend, right):
    """About a Gaussian mechanism, independent guesses are right with Φ(1 / 2σ)."""
    exact = binom.sf(right - 1, 1000, norm.cdf(0.5 / spend.noise_multiplier))
    assert p_value(curve(spend), 1000, 1000, right) >= exact


def test_refuted_is_where_the_p_value_crosses():
    claim = GAUSSIAN[2.0]
    found = refuted_epsilon(claim, 1000, 200, 150, chance=0.05, delta=DELTA)
    by_epsilon = {epsilon_pld([at(sigma)], DELTA, grid=1e-3): at(sigma) for sigma in np.geomspace(0.5, 9, 200)}
    below = by_epsilon[max(epsilon for epsilon in by_epsilon if epsilon <= found)]
    above = by_epsilon[min(epsilon for epsilon in by_epsilon if epsilon > 1.02 * found)]
    assert p_value(curve(below), 1000, 200, 150) <= 0.05 < p_value(curve(above), 1000, 200, 150)
    assert refuted_epsilon(claim, 1000, 200, 100, chance=0.05, delta=DELTA) == 0.0
    assert refuted_epsilon(claim, 1000, 0, 0, chance=0.05, delta=DELTA) == 0.0
    assert refuted_epsilon(claim, 1000, 200, 150, chance=0.005, delta=DELTA) < found


def at(sigma):
    return SpendEvent(1.0, float(sigma), 1)


@pytest.mark.parametrize(
    "wrong", [(5, 6, 1, 0.5), (5, 4, 5, 0.5), (5, 4, -1, 0.5), (5, 4, 1, 0.0), (5, 4, 1, 1.5), (5, 4, 1, math.nan)]
)
def test_impossible_counts_are_refused(wrong):
    with pytest.raises(ValueError, match="right <= guesses"):
        is_refuted(curve(CLAIM), *wrong)


def gaussian_run(spend, canaries, random):
    """Each canary's own Gaussian release: nothing is closer to the claim."""
    included = random.random(canaries) < 0.5
    return included, included + spend.noise_multiplier * random.standard_normal(canaries)


@pytest.mark.parametrize("epsilon", GAUSSIAN)
def test_the_bound_holds_as_often_as_it_says(epsilon):
    """Of 80 audits by two attacks each, a bound above the truth is rarer than 1 - confidence; so is a small p-value."""
    spend, random = GAUSSIAN[epsilon], np.random.default_rng(0)
    wrong = refuted = 0
    for _ in range(80):
        included, scores = gaussian_run(spend, 300, random)
        both = {"a": scores, "b": random.random(300)}
        wrong += max(lower_bounds(both, included, spend=spend, delta=DELTA, confidence=0.7).values()) > epsilon
        refuted += claim_p_value(both, included, spend) <= 0.3
    assert wrong < 0.3 * 80
    assert refuted < 0.3 * 80


def test_a_claim_of_more_noise_than_there_is_is_refuted():
    """The negative control of the coverage: the same runs under a claim that is too good."""
    random, refuted = np.random.default_rng(0), 0
    for _ in range(20):
        included, scores = gaussian_run(GAUSSIAN[8.0], 300, random)
        refuted += claim_p_value({"a": scores}, included, GAUSSIAN[2.0]) <= 0.3
    assert refuted == 20


def bound_of_before(canaries, guesses, right, chance):
    """Steinke, Nasr and Jagielski 2023 at δ = 1e-5, term by term."""
    low, high = 0.0, 20.0
    while high - low > 1e-3:
        epsilon = (low + high) / 2
        likely = binom.pmf(np.arange(guesses + 1), guesses, 1 / (1 + math.exp(-epsilon)))
        below = np.cumsum(likely[:right][::-1]) / np.arange(1, right + 1)
        value = likely[right:].sum() + 2 * canaries * DELTA * below.max()
        low, high = (epsilon, high) if value <= chance else (low, epsilon)
    return low


@pytest.mark.parametrize("epsilon", GAUSSIAN)
def test_it_shows_more_than_the_bound_of_before(epsilon):
    """With 1,000 canaries and the same guesses, in each of ten runs, and by a half or more in the mean."""
    spend, random, pairs = GAUSSIAN[epsilon], np.random.default_rng(5), []
    for _ in range(10):
        included, scores = gaussian_run(spend, 1000, random)
        ranked = included[np.argsort(-scores, kind="stable")]
        right = int(ranked[:200].sum() + (~ranked[800:]).sum())
        new = refuted_epsilon(spend, 1000, 400, right, chance=0.05, delta=DELTA)
        pairs.append((new, bound_of_before(1000, 400, right, 0.05)))
    assert all(new > old for new, old in pairs)
    means = np.mean(pairs, axis=0)
    assert means[0] > 1.5 * means[1]
    assert means[0] > 0.35 * epsilon


def test_the_bound_finds_what_there_is():
    included, scores = gaussian_run(GAUSSIAN[8.0], 1000, np.random.default_rng(1))
    claim = GAUSSIAN[8.0]
    found = lower_bounds({"it": scores, "inverse": -scores}, included, spend=claim, delta=DELTA, confidence=0.95)
    assert 2.4 < found["it"] < 8.0
    assert found["inverse"] == 0.0


def test_more_attempts_are_each_given_less():
    included, scores = gaussian_run(GAUSSIAN[8.0], 500, np.random.default_rng(2))
    options = {"spend": GAUSSIAN[8.0], "delta": DELTA, "confidence": 0.95}
    alone = lower_bounds({"a": scores}, included, **options)["a"]
    assert lower_bounds({str(i): scores for i in range(9)}, included, **options)["0"] < alone
    ranked = included[np.argsort(-scores, kind="stable")]
    best = 0.0
    for ends in (int(500 * share) for share in SHARES):
        right = int(ranked[:ends].sum() + (~ranked[500 - ends :]).sum())
        chance = (1 - 0.95) / len(SHARES)
        best = max(best, refuted_epsilon(GAUSSIAN[8.0], 500, 2 * ends, right, chance=chance, delta=DELTA))
    assert alone == best


@pytest.mark.parametrize("scores", [np.zeros(3), np.full(4, math.nan), np.array([0, 1, math.inf, 2])])
def test_scores_that_rank_nothing_are_refused(scores):
    with pytest.raises(ValueError, match="finite score"):
        lower_bounds({"a": scores}, np.ones(4, bool), spend=CLAIM, delta=DELTA, confidence=0.95)
    with pytest.raises(ValueError, match="finite score"):
        claim_p_value({"a": scores}, np.ones(4, bool), CLAIM)
