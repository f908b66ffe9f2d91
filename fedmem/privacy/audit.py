"""A lower bound on epsilon from one training run whose canaries were included by fair coins.

An auditor guesses from the released updates which canaries were in. Epsilon bounds how often such guesses can be
right, so many right guesses refute a small epsilon. Few of them refute nothing: a bound below the claim is no proof.

Invariants
- Pure: scores and coins in, a number out. What is guessed depends on scores alone, never on the coins.
- How many guesses are made is fixed beforehand, and the confidence is shared among all attempts (a union bound), so
  that the best of several attacks is a bound too.
- Guesses stand at the ends of the ranking: as many "in" at its top as "out" at its bottom; the rest are not guessed.

Shapes: M canaries.

>>> included_M = np.arange(1000) % 2 == 0
>>> found = lower_bounds({"perfect": included_M * 1.0}, included_M, delta=1e-5, confidence=0.95)
>>> bool(4.0 < found["perfect"] < 6.0)
True
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SHARES = (0.05, 0.1, 0.2, 0.5)
"""Shares of the canaries that are guessed at each end of the ranking, one attempt each."""
MOST = 50.0  # no audit of a few thousand canaries gets near it
PRECISION = 1e-3


def lower_bounds(
    scores: Mapping[str, NDArray[np.floating]], included_M: NDArray[np.bool_], *, delta: float, confidence: float
) -> dict[str, float]:
    """Of each attack, by its scores `[M]` (greater means more likely in), the epsilon that its guesses refute.

    Guarantees: if the run is (epsilon, delta)-DP for each canary, then with probability `confidence` over the coins
    and the run no figure is above epsilon. Raises ValueError for scores that are not finite or of another length.
    """
    own, chance = np.asarray(included_M, bool), (1 - confidence) / max(1, len(scores) * len(SHARES))
    return {name: _best(np.asarray(values_M, float), own, delta, 1 - chance) for name, values_M in scores.items()}


def _best(scores_M: NDArray[np.float64], included_M: NDArray[np.bool_], delta: float, confidence: float) -> float:
    if scores_M.shape != included_M.shape or not np.isfinite(scores_M).all():
        raise ValueError("an audit needs one finite score for each canary")
    ranked_M, canaries = included_M[np.argsort(-scores_M, kind="stable")], len(scores_M)
    found = 0.0
    for ends in (int(canaries * share) for share in SHARES):
        right = int(ranked_M[:ends].sum() + (~ranked_M[canaries - ends :]).sum())
        found = max(found, refuted(canaries, 2 * ends, right, delta=delta, confidence=confidence))
    return found


def refuted(canaries: int, guesses: int, right: int, *, delta: float, confidence: float) -> float:
    """Greatest epsilon, to 0.001 and rounded down, at which so many right guesses have a p-value of 1 - confidence.

    | case | gives |
    |---|---|
    | no better than chance, or no guess | 0 |
    | every guess right | a finite epsilon that grows with the logarithm of the guesses |
    """
    low, high = 0.0, MOST
    if not guesses or p_value(canaries, guesses, right, 0.0, delta) > 1 - confidence:
        return 0.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        holds = p_value(canaries, guesses, right, middle, delta) <= 1 - confidence
        low, high = (middle, high) if holds else (low, middle)
    return low


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Chance of at least `right` right guesses if the run is (epsilon, delta)-DP, bounded from above.

    Guarantees: the auditor of algorithm 1 and the p-value of appendix D of Steinke, Nasr and Jagielski 2023 (arXiv
    2305.08846): each guess is right at most as a coin of bias `1 / (1 + exp(-epsilon))` is heads, and delta adds
    `2 m delta max_i P[v > X >= v - i] / i`. Raises ValueError where counts or parameters are impossible.
    """
    if not 0 <= right <= guesses <= canaries or not 0 <= epsilon < math.inf or not 0 <= delta <= 1:
        raise ValueError("an audit needs right <= guesses <= canaries, a finite epsilon and a delta in [0, 1]")
    chance_K = _right(guesses, epsilon)
    just_below = np.cumsum(chance_K[:right][::-1])
    most = float((just_below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, float(chance_K[right:].sum()) + 2 * canaries * delta * most)


def _right(guesses: int, epsilon: float) -> NDArray[np.float64]:
    """Chances of 0 to `guesses` right ones, `[K]`, each of chance `1 / (1 + exp(-epsilon))`."""
    right = np.arange(guesses + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, guesses + 1)))])
    ways = factorial[guesses] - factorial - factorial[::-1]
    # In logarithms of either side, as the chance itself rounds to 1 where epsilon is large.
    wrong = -epsilon * (guesses - right)
    chance_K: NDArray[np.float64] = np.exp(ways + wrong - guesses * math.log1p(math.exp(-epsilon)))
    return chance_K
