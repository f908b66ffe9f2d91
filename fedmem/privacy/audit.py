"""Compute a lower bound on epsilon from one training run in which fair coins decided about each canary.

An auditor guesses from the released updates which canaries were included. The curve of a mechanism (`tradeoff`) limits
how often such guesses are right, so many right guesses refute a curve. Few right guesses refute nothing: a bound below
the claimed epsilon proves nothing.

The test is that of Mahloujifar, Melis and Chaudhuri 2025 (arXiv 2410.22235). Let m canaries have fair coins, let an
auditor make exactly g guesses, let C of them be right, and let F be the curve, which holds for each canary whatever the
other coins are.
1. Fix a canary and a number j. "The guess about it is right, and j others are" and "it is wrong, and j others are right
   or more" differ in the canary's coin alone. Coins are fair and F is concave, so with "j others or more" in both,
   P[right, others >= j] <= F(P[wrong, others >= j]).
2. Take the mean over all canaries; canaries without a guess count zero, and F is concave. With t_j = P[C >= j],
   r_j = E[C; C >= j] / m and h_j = E[g - C; C >= j] / m this gives r_(j+1) <= F(h_j).
3. r_j = (j t_j + t_(j+1) + ... + t_g) / m and h_j = g t_j / m - r_j, so step 2 reads
   t_j (g - j) >= m F⁻¹(r_(j+1)) + t_(j+1) + ... + t_g. The right side grows with every later t.
4. So if P[C >= right] is p or more, the recursion from t_right = p, zero after it, gives a lower bound on each t_j.
   A lower bound above 1 is a contradiction: then P[C >= right] < p.

Invariants
- The functions are pure: scores and coins in, a number out. The guesses depend on the scores alone, never on the coins.
- The number of guesses is fixed beforehand. The confidence is split among all attempts (a union bound), so the best of
  several attacks is a bound too.
- Guesses are made at the ends of the ranking: as many "in" at the top as "out" at the bottom, none in between.

Shapes: M canaries.

>>> included_M = np.arange(1000) % 2 == 0
>>> claim = SpendEvent(0.5, 3.13, 8)
>>> bounds = lower_bounds({"perfect": included_M * 1.0}, included_M, spend=claim, delta=1e-5, confidence=0.95)
>>> bool(4.0 < bounds["perfect"] < 30.0)
True
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedmem.privacy.accounting import COARSE, epsilon_pld
from fedmem.privacy.spend import SpendEvent
from fedmem.privacy.tradeoff import TradeoffCurve, curve

Scores = Mapping[str, NDArray[np.floating]]
SHARES = (0.1, 0.2)
"""Shares of the canaries that are guessed at each end of the ranking; each share is one attempt."""
RATIO, REACH = 1.01, 350
"""The noise of the claim times RATIO to a power of at most REACH, either way: the noise that an audit looks for."""
LEAST, ROUNDING = 1e-12, 1e-9
"""The least p-value that is told apart from 0, and a bound on the float errors of the recursion."""


def lower_bounds(
    scores: Scores, included_M: NDArray[np.bool_], *, spend: SpendEvent, delta: float, confidence: float
) -> dict[str, float]:
    """Return for each attack the greatest epsilon that its guesses refute, among mechanisms that differ in noise.

    Guarantees: if the run is the mechanism of `spend` with any other noise, or has its curve, then with probability
    `confidence` over the coins and the run no returned figure is above its epsilon at `delta`. A figure above the
    epsilon of `spend` refutes the claim itself, whatever the run is.

    Args:
        scores: attack -> its scores `[M]`; a greater score means that the canary is more likely included.
        included_M: True for each canary that was included.
        spend: the claim; its noise multiplier is above 0.
        delta: strictly between 0 and 1.
        confidence: of all bounds together, below 1.

    Raises:
        ValueError: scores are not finite, or not one for each canary.
    """
    chance = (1 - confidence) / max(1, len(scores) * len(SHARES))
    return {
        name: max(
            (refuted_epsilon(spend, *counts, chance=chance, delta=delta) for counts in _counts(values_M, included_M)),
            default=0.0,
        )
        for name, values_M in scores.items()
    }


def claim_p_value(scores: Scores, included_M: NDArray[np.bool_], spend: SpendEvent) -> float:
    """Return an upper bound on the chance that a run as claimed gives guesses as right as the best of these.

    Args:
        scores: as in `lower_bounds`.
        included_M: as in `lower_bounds`.
        spend: as in `lower_bounds`.

    Raises:
        ValueError: as `lower_bounds`.
    """
    claim = curve(spend)
    values = [p_value(claim, *counts) for values_M in scores.values() for counts in _counts(values_M, included_M)]
    return min(1.0, len(values) * min(values, default=1.0))


def _counts(scores_M: NDArray[np.floating], included_M: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Return canaries, guesses and right guesses of each attempt."""
    values_M, coins_M = np.asarray(scores_M, np.float64), np.asarray(included_M, bool)
    if values_M.shape != coins_M.shape or not np.isfinite(values_M).all():
        raise ValueError("an audit needs one finite score for each canary")
    ranked_M, canaries = coins_M[np.argsort(-values_M, kind="stable")], len(coins_M)
    ends = [int(canaries * share) for share in SHARES]
    return [(canaries, 2 * end, int(ranked_M[:end].sum() + (~ranked_M[canaries - end :]).sum())) for end in ends]


def refuted_epsilon(
    spend: SpendEvent, canaries: int, guesses: int, right: int, *, chance: float, delta: float
) -> float:
    """Return the greatest epsilon at `delta` of a mechanism that `right` right guesses refute at `chance`.

    The mechanisms are those of `spend` with more or less noise. The result is rounded down to 0.001.

    | case | result |
    |---|---|
    | no better than chance, or no guess | 0 |
    | every guess right | a finite epsilon that grows with the guesses |

    Args:
        spend: sampling rate and steps; its noise is where the search begins.
        canaries: number of canaries.
        guesses: number of guesses, at most `canaries`.
        right: number of right guesses.
        chance: in (0, 1].
        delta: strictly between 0 and 1.
    """

    def with_noise(power: int) -> SpendEvent:
        return replace(spend, noise_multiplier=spend.noise_multiplier * RATIO**power)

    def is_noise_refuted(power: int) -> bool:
        return is_refuted(curve(with_noise(power)), canaries, guesses, right, chance)

    low, high = -REACH, REACH
    if not is_noise_refuted(high):
        return 0.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_noise_refuted(middle) else (middle, high)
    return math.floor(1000 * epsilon_pld([with_noise(high)], delta, grid=COARSE)) / 1000


def p_value(claim: TradeoffCurve, canaries: int, guesses: int, right: int) -> float:
    """Return an upper bound on the chance of at least `right` right guesses for a run with this curve.

    It is exact to 1 %, rounded up, and at least `LEAST`.

    Args:
        claim: as in `is_refuted`.
        canaries: as in `is_refuted`.
        guesses: as in `is_refuted`.
        right: as in `is_refuted`.

    Raises:
        UsageError: as `is_refuted`.
    """
    if not is_refuted(claim, canaries, guesses, right, 1.0):
        return 1.0
    low, high = LEAST, 1.0
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_refuted(claim, canaries, guesses, right, middle) else (middle, high)
    return high


def is_refuted(claim: TradeoffCurve, canaries: int, guesses: int, right: int, chance: float) -> bool:
    """Return True if a run with this curve makes at least `right` right guesses with a probability below `chance`.

    Guarantees: the recursion of the module's docstring. It may return False where True is right, never the other way.

    Args:
        claim: the curve.
        canaries: number of canaries.
        guesses: number of guesses, at most `canaries`.
        right: number of right guesses, at most `guesses`.
        chance: in (0, 1].

    Raises:
        ValueError: counts or parameters are out of range.
    """
    if not 0 <= right <= guesses <= canaries or not 0 < chance <= 1:
        raise ValueError("an audit needs right <= guesses <= canaries and a chance in (0, 1]")
    least, later, detection = chance, chance, chance * right / canaries  # t_j, the sum of t from j on, and r_j
    for j in range(right - 1, -1, -1):
        grown = max(least, (canaries * claim.least_alarms(detection) + later) / (guesses - j))
        detection += j * (grown - least) / canaries
        least, later = grown, later + grown
        if least > 1 + ROUNDING:
            return True
    return False
