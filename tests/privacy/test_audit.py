"""The audit's lower bound against the definition of its theorem."""

import math

import numpy as np
import pytest

from fedmem.privacy.audit import SHARES, lower_bounds, p_value, refuted_epsilon


def likely(n, k, bias):
    return math.comb(n, k) * bias**k * (1 - bias) ** (n - k)


def by_definition(m, r, v, epsilon, delta):
    """The bound of the paper term by term, in plain Python."""
    bias = math.exp(epsilon) / (math.exp(epsilon) + 1)
    tail = sum(likely(r, k, bias) for k in range(v, r + 1))
    below = [sum(likely(r, k, bias) for k in range(v - i, v)) / i for i in range(1, v + 1)]
    return min(1.0, tail + 2 * m * delta * max(below, default=0.0))


@pytest.mark.parametrize(("m", "r", "v"), [(20, 10, 9), (50, 50, 40), (500, 100, 71), (7, 7, 7), (9, 4, 0), (3, 0, 0)])
@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 0.0), (2.0, 1e-5), (0.5, 1e-2), (30.0, 0.0)])
def test_p_value_is_that_of_the_theorem(m, r, v, epsilon, delta):
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(by_definition(m, r, v, epsilon, delta), rel=1e-9)


def test_refuted_is_where_the_p_value_crosses():
    found = refuted_epsilon(1000, 200, 150, delta=1e-5, confidence=0.95)
    assert p_value(1000, 200, 150, found, 1e-5) <= 0.05 < p_value(1000, 200, 150, found + 2e-3, 1e-5)
    assert refuted_epsilon(1000, 200, 100, delta=1e-5, confidence=0.95) == 0.0
    assert refuted_epsilon(1000, 0, 0, delta=1e-5, confidence=0.95) == 0.0
    assert refuted_epsilon(1000, 200, 150, delta=1e-2, confidence=0.95) < found
    assert p_value(10, 10, 10, 700.0, 0.0) == 1.0
    assert refuted_epsilon(1000, 1000, 1000, delta=0.0, confidence=0.95) == pytest.approx(
        -math.log(0.05 ** (-1 / 1000) - 1), 1e-2
    )


@pytest.mark.parametrize(
    "wrong",
    [
        (5, 6, 1, 0.0, 0.0),
        (5, 4, 5, 0.0, 0.0),
        (5, 4, -1, 0.0, 0.0),
        (5, 4, 1, -1.0, 0.0),
        (5, 4, 1, math.nan, 0.0),
        (5, 4, 1, math.inf, 0.0),
        (5, 4, 1, 1.0, 1.5),
    ],
)
def test_impossible_counts_are_refused(wrong):
    with pytest.raises(ValueError, match="right <= guesses"):
        p_value(*wrong)


def responses(epsilon, canaries, random):
    """Randomised response, which is exactly epsilon-DP: the tightest mechanism that an audit can meet."""
    included = random.random(canaries) < 0.5
    kept = random.random(canaries) < 1 / (1 + math.exp(-epsilon))
    return included, np.where(kept, included, ~included) + random.random(canaries) / 2


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_the_bound_holds_as_often_as_it_says(epsilon):
    """Of 60 audits by two attacks each, a bound above the truth is rarer than 1 - confidence."""
    random, wrong = np.random.default_rng(0), 0
    for _ in range(60):
        included, scores = responses(epsilon, 300, random)
        found = lower_bounds({"a": scores, "b": random.random(300)}, included, delta=0.0, confidence=0.7)
        wrong += max(found.values()) > epsilon
    assert wrong < 0.3 * 60


def test_the_bound_finds_what_there_is():
    included, scores = responses(3.0, 1000, np.random.default_rng(1))
    found = lower_bounds({"it": scores, "inverse": -scores}, included, delta=1e-5, confidence=0.95)
    assert 2.4 < found["it"] < 3.0
    assert found["inverse"] == 0.0


def test_more_attempts_are_each_given_less():
    included, scores = responses(2.0, 500, np.random.default_rng(2))
    alone = lower_bounds({"a": scores}, included, delta=1e-5, confidence=0.95)["a"]
    many = lower_bounds({str(i): scores for i in range(9)}, included, delta=1e-5, confidence=0.95)["0"]
    assert many < alone
    ranked = included[np.argsort(-scores, kind="stable")]
    best = 0.0
    for ends in (int(500 * share) for share in SHARES):
        right = int(ranked[:ends].sum() + (~ranked[500 - ends :]).sum())
        best = max(best, refuted_epsilon(500, 2 * ends, right, delta=1e-5, confidence=1 - 0.05 / len(SHARES)))
    assert alone == best


@pytest.mark.parametrize("scores", [np.zeros(3), np.full(4, math.nan), np.array([0, 1, math.inf, 2])])
def test_scores_that_rank_nothing_are_refused(scores):
    with pytest.raises(ValueError, match="finite score"):
        lower_bounds({"a": scores}, np.ones(4, bool), delta=1e-5, confidence=0.95)
