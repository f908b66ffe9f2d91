"""Compute the epsilon of a list of spends: tightly by PLD, and as a looser upper bound by RDP in plain numpy.

Invariants
- Both figures are upper bounds. RDP is never below PLD, except by PLD's discretisation.
- All spends compose. Their order has no effect.
- Each step adds the error of the noise sampler, `rounded_gaussian.STEP_EPSILON`, to epsilon. What the sampler's tail
  adds to delta, times 1 + e^epsilon, is below 1e-100.
- GDP (central limit) accounting is not offered, because it understates epsilon.
- Only `epsilon_pld` loads `dp_accounting`; the rest needs numpy alone.

Edge cases, for both
| spends | epsilon |
|---|---|
| none, zero steps, or rate 0 | 0 |
| noise multiplier 0 | inf |
| RDP bound above 100 | the RDP bound, for both: PLD's grid would take gigabytes, and such an epsilon protects nothing |
| delta outside (0, 1), or NaN | UsageError |

>>> spends = [SpendEvent(0.1, 1.0, 100)]
>>> bool(7.0 < epsilon_pld(spends, 1e-5) < epsilon_rdp(spends, 1e-5) < 8.0)
True
"""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError
from fedmem.privacy.rounded_gaussian import STEP_EPSILON
from fedmem.privacy.spend import SpendEvent

Merged = tuple[tuple[float, float, int], ...]
"""Distinct mechanisms as (sampling rate, noise multiplier, steps), sorted."""
ORDERS = np.array([*range(2, 64), 72, 80, 96, 112, 128, 192, 256, 384, 512, 1024], dtype=np.int64)
FINE, COARSE = 1e-4, 1e-3
"""Widths of PLD's grid of privacy losses. With both, rounding is towards a larger epsilon."""
HOPELESS = 100.0
"""RDP bound above which PLD is not computed."""


def _merge(spends: Iterable[SpendEvent]) -> Merged:
    """Sum the steps of equal mechanisms and sort them: order has no effect, and equal lists hit the cache."""
    steps: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        if spend.steps and spend.sampling_rate:
            steps[(spend.sampling_rate, spend.noise_multiplier)] += spend.steps
    return tuple(sorted((rate, noise, count) for (rate, noise), count in steps.items()))


def _edge_case_epsilon(merged: Merged, delta: float) -> float | None:
    if not 0.0 < delta < 1.0:
        raise UsageError("delta must lie strictly between 0 and 1.")
    if not merged:
        return 0.0
    return math.inf if any(noise == 0.0 for _, noise, _ in merged) else None


def epsilon_pld(spends: Iterable[SpendEvent], delta: float, *, grid: float = FINE) -> float:
    """Return the epsilon of all spends together, by numerical composition of privacy loss distributions.

    Guarantees: an upper bound on the epsilon of (epsilon, delta)-DP for adding or removing one record that
    took part in every spend (Koskela et al. 2020; discretisation "connect the dots", Doroshenko et al. 2022).

    Args:
        spends: the spends to compose.
        delta: strictly between 0 and 1.
        grid: width of the grid of privacy losses; a coarser grid is faster and gives a larger epsilon.

    Raises:
        UsageError: delta is not strictly between 0 and 1.
    """
    merged = _merge(spends)
    bound = _rdp_epsilon(merged, delta)
    return bound if bound == 0.0 or bound > HOPELESS else _pld(merged, delta, grid) + sampler_epsilon(merged)


@lru_cache(maxsize=1024)
def _pld(merged: Merged, delta: float, grid: float) -> float:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=grid)
    for rate, noise, steps in merged:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(event, steps)
    return float(accountant.get_epsilon(delta))


def epsilon_rdp(spends: Iterable[SpendEvent], delta: float) -> float:
    """Return an upper bound on the epsilon of all spends together, by Rényi DP at integer orders.

    Guarantees: (epsilon, delta)-DP by Canonne, Kamath and Steinke 2020, Proposition 12, minimised over orders.

    Args:
        spends: the spends to compose.
        delta: strictly between 0 and 1.

    Raises:
        UsageError: delta is not strictly between 0 and 1.
    """
    return _rdp_epsilon(_merge(spends), delta)


def _rdp_epsilon(merged: Merged, delta: float) -> float:
    edge_case = _edge_case_epsilon(merged, delta)
    if edge_case is not None:
        return edge_case
    return epsilon_of_rdp(rdp(merged), ORDERS, delta) + sampler_epsilon(merged)


def sampler_epsilon(merged: Merged) -> float:
    """Return what the sampler of the noise adds to epsilon.

    The drawn probability of every outcome lies within a factor exp(CELL_ERROR) for each value of that of the exact
    mechanism. The factors of all values and steps multiply, under either data set.

    Args:
        merged: the spends.
    """
    return STEP_EPSILON * sum(steps for _, _, steps in merged)


def epsilon_of_rdp(divergences: NDArray[np.float64], orders: NDArray[np.int64], delta: float) -> float:
    """Return ε at `delta` of Rényi divergences.

    Guarantees: an upper bound if each divergence is one (Canonne, Kamath and Steinke 2020, Proposition 12). What the
    sampler of the noise adds (`sampler_epsilon`) is not in it.

    Args:
        divergences: one divergence for each order, `[N]`, at least 0; may be infinite.
        orders: the orders, `[N]`, above 1.
        delta: strictly between 0 and 1.
    """
    alphas = orders.astype(np.float64)
    epsilons = divergences + np.log1p(-1 / alphas) - (math.log(delta) + np.log(alphas)) / (alphas - 1)
    return max(0.0, float(epsilons.min()))


def composed_rdp(spends: Iterable[SpendEvent]) -> NDArray[np.float64]:
    """Return the Rényi divergence of all spends together at each of `ORDERS`.

    Args:
        spends: the spends to compose, in any order.

    Returns:
        Divergences `[N]` for the N `ORDERS`.
    """
    return rdp(_merge(spends))


def rdp(merged: Merged) -> NDArray[np.float64]:
    """Return the Rényi divergence of the composition at each of `ORDERS`.

    Args:
        merged: distinct mechanisms with their steps, as `_merge` returns them.

    Returns:
        Divergences `[N]` for the N `ORDERS`; infinite if a mechanism has no noise.
    """
    total = np.zeros(len(ORDERS))
    for rate, noise, steps in merged:
        total += steps * _rdp_step(rate, noise)
    return total


@lru_cache(maxsize=1024)
def _rdp_step(rate: float, noise: float) -> NDArray[np.float64]:
    """Return the Rényi divergence of one Poisson-subsampled Gaussian at each of `ORDERS`.

    The formula is that of Mironov, Talwar and Zhang 2019, section 3.3.
    """
    if noise == 0.0:
        return np.full(len(ORDERS), math.inf)
    if rate == 1.0:
        return ORDERS / (2 * noise**2)
    return np.array([_log_moment(int(order), rate, noise) / (int(order) - 1) for order in ORDERS])


def _log_moment(order: int, rate: float, noise: float) -> float:
    k = np.arange(order + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, order + 1)))])
    log_binomial = log_factorial[order] - log_factorial - log_factorial[::-1]
    terms = log_binomial + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * noise**2)
    largest = terms.max()
    return float(largest + np.log(np.exp(terms - largest).sum()))
