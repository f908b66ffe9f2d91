"""Compute a lower bound on epsilon from one training run in which fair coins decided about each canary.

An auditor guesses from the released updates which canaries were included. Epsilon limits how often such guesses are
right. So many right guesses refute a small epsilon. Few right guesses refute nothing: a bound below the claimed epsilon
proves nothing.

Invariants
- The functions are pure: scores and coins in, a number out. The guesses depend on the scores alone, never on the coins.
- The number of guesses is fixed beforehand. The confidence is split among all attempts (a union bound), so the best of
  several attacks is a bound too.
- Guesses are made at the ends of the ranking: as many "in" at the top as "out" at the bottom, none in between.

Shapes: M canaries, K = guesses + 1.

>>> included_M = np.arange(1000) % 2 == 0
>>> bounds = lower_bounds({"perfect": included_M * 1.0}, included_M, delta=1e-5, confidence=0.95)
>>> bool(4.0 < bounds["perfect"] < 6.0)
True
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

SHARES = (0.05, 0.1, 0.2, 0.5)
"""Shares of the canaries that are guessed at each end of the ranking; each share is one attempt."""
MOST = 50.0  # the search ends here; no audit of a few thousand canaries reaches it
PRECISION = 1e-3


def lower_bounds(
    scores: Mapping[str, NDArray[np.floating]], included_M: NDArray[np.bool_], *, delta: float, confidence: float
) -> dict[str, float]:
    """Return for each attack the greatest epsilon that its guesses refute.

    Guarantees: if the run is (epsilon, delta)-DP for each canary, then with probability `confidence` over the coins
    and the run no returned figure is above epsilon.

    Args:
        scores: attack -> its scores `[M]`; a greater score means that the canary is more likely included.
        included_M: True for each canary that was included.
        delta: the delta of the claim, in [0, 1].
        confidence: of all bounds together, below 1.

    Raises:
        ValueError: scores are not finite, or not one for each canary.
    """
    coins_M, error_chance = np.asarray(included_M, bool), (1 - confidence) / max(1, len(scores) * len(SHARES))
    return {
        name: _best_bound(np.asarray(values_M, float), coins_M, delta, 1 - error_chance)
        for name, values_M in scores.items()
    }


def _best_bound(scores_M: NDArray[np.float64], included_M: NDArray[np.bool_], delta: float, confidence: float) -> float:
    if scores_M.shape != included_M.shape or not np.isfinite(scores_M).all():
        raise ValueError("an audit needs one finite score for each canary")
    ranked_M, canaries = included_M[np.argsort(-scores_M, kind="stable")], len(scores_M)
    bound = 0.0
    for ends in (int(canaries * share) for share in SHARES):
        right = int(ranked_M[:ends].sum() + (~ranked_M[canaries - ends :]).sum())
        bound = max(bound, refuted_epsilon(canaries, 2 * ends, right, delta=delta, confidence=confidence))
    return bound


def refuted_epsilon(canaries: int, guesses: int, right: int, *, delta: float, confidence: float) -> float:
    """Return the greatest epsilon at which `right` right guesses have a p-value of at most 1 - `confidence`.

    The result is rounded down to 0.001.

    | case | result |
    |---|---|
    | no better than chance, or no guess | 0 |
    | every guess right | a finite epsilon that grows with the logarithm of the guesses |

    Args:
        canaries: number of canaries.
        guesses: number of guesses, at most `canaries`.
        right: number of right guesses.
        delta: in [0, 1].
        confidence: below 1.
    """
    low, high = 0.0, MOST
    if not guesses or p_value(canaries, guesses, right, 0.0, delta) > 1 - confidence:
        return 0.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        is_refuted = p_value(canaries, guesses, right, middle, delta) <= 1 - confidence
        low, high = (middle, high) if is_refuted else (low, middle)
    return low


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return an upper bound on the chance of at least `right` right guesses if the run is (epsilon, delta)-DP.

    Guarantees: the auditor of algorithm 1 and the p-value of appendix D of Steinke, Nasr and Jagielski 2023 (arXiv
    2305.08846). Each guess is right with at most the probability `1 / (1 + exp(-epsilon))`, and delta adds
    `2 m delta max_i P[v > X >= v - i] / i`, for m canaries and v right guesses.

    Args:
        canaries: number of canaries.
        guesses: number of guesses, at most `canaries`.
        right: number of right guesses, at most `guesses`.
        epsilon: finite, at least 0.
        delta: in [0, 1].

    Raises:
        ValueError: counts or parameters are out of range.
    """
    if not 0 <= right <= guesses <= canaries or not 0 <= epsilon < math.inf or not 0 <= delta <= 1:
        raise ValueError("an audit needs right <= guesses <= canaries, a finite epsilon and a delta in [0, 1]")
    chance_K = _chances_of_right_guesses(guesses, epsilon)
    just_below = np.cumsum(chance_K[:right][::-1])
    most = float((just_below / np.arange(1, right + 1)).max(initial=0.0))
    return min(1.0, float(chance_K[right:].sum()) + 2 * canaries * delta * most)


def _chances_of_right_guesses(guesses: int, epsilon: float) -> NDArray[np.float64]:
    """Return the chances `[K]` of 0 to `guesses` right guesses, each right with chance `1 / (1 + exp(-epsilon))`."""
    right = np.arange(guesses + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, guesses + 1)))])
    ways = factorial[guesses] - factorial - factorial[::-1]
    # In logarithms of right and wrong, because the chance of a right guess rounds to 1 for a large epsilon.
    wrong = -epsilon * (guesses - right)
    chance_K: NDArray[np.float64] = np.exp(ways + wrong - guesses * math.log1p(math.exp(-epsilon)))
    return chance_K
