"""Compute a tight epsilon for rounds that draw a fixed number of devices without replacement, by PLD.

Each round draws m of n devices uniformly and releases the sum of their vectors, each of L2 norm at most C, plus
N(0, (σC)²) in every coordinate. Adjacency is to replace one device's vectors by any others.

Why the bound holds. Let γ = m / n, P = N(2/σ, 1), Q = N(0, 1), H_a(X, Y) = sup over events S of X(S) - a Y(S), and
let device 1 be the one that differs between the two populations.
1. The output is (1-γ) A + γ B on one population and (1-γ) A + γ B' on the other. A is the output given that device 1
   is not drawn, so it is equal on both; B and B' are the outputs given that device 1 is drawn.
2. Let a >= 1, a' = 1 + γ (a - 1) and b = a' / a. By advanced joint convexity (Balle, Barthe and Gaboardi 2018,
   Theorem 2), H_a'((1-γ) A + γ B, (1-γ) A + γ B') = γ H_a(B, (1-b) A + b B'). H is convex in its second argument, so
   this is at most γ max(H_a(B, A), H_a(B, B')).
3. Given the same m - 1 other devices, B and B' are Gaussians whose centres differ by at most 2C. For A, draw the same
   m - 1 devices and one more, uniform among the rest: A and B are mixtures of such pairs with equal weights. H is
   jointly convex, so H_a(B, A) and H_a(B, B') are at most H_a(P, Q).
4. γ H_a(P, Q) = H_a'((1-γ) Q + γ P, Q). This bounds both orders of the populations for a' >= 1. For a' < 1,
   H_a'(X, Y) = 1 - a' + a' H_1/a'(Y, X) and the bound of the other order give H_a'(Q, (1-γ) Q + γ P).
5. The bounds of step 4 are one curve over all a' > 0 (Zhu, Dong and Wang 2022, on sampling without replacement). It is
   convex, also at a' = 1, decreasing and at least max(0, 1 - a'). So it is the curve of some pair of distributions,
   and that pair dominates a round. Dominating pairs compose, adaptively too (Zhu, Dong and Wang 2022, Theorem 10).
6. The PLD of that pair is discretised by connecting points of its curve, which lies above the curve everywhere
   (Doroshenko et al. 2022).

One round attains the bound: all other devices send -C in a direction, and device 1 sends C or -C. Step 4 gives the same
curve in both orders, so one PLD stands for both. Neither order alone would do under composition.

>>> 3.8 < epsilon_fixed_pld(0.05, 2.0, 100, 1e-5) < 3.9
True
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedmem.privacy.accounting import FINE

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

TAIL = 10.0
"""Standard deviations of a round's output that the grid covers. The rest, below 1e-23, counts as an infinite loss."""


@lru_cache(maxsize=1024)
def epsilon_fixed_pld(rate: float, noise_multiplier: float, steps: int, delta: float, grid: float = FINE) -> float:
    """Return the epsilon of `steps` rounds, each on a fixed share `rate` of the devices.

    Guarantees: an upper bound on the epsilon of (epsilon, delta)-DP for replacing one device by another, by the proof
    in this module's docstring, up to rounding of float64.

    | input | epsilon |
    |---|---|
    | rate 1 | that of the Gaussian mechanism with sensitivity two clip norms |
    | no step | 0 |

    Args:
        rate: devices drawn over devices declared, in (0, 1].
        noise_multiplier: standard deviation of the noise in clip norms, above 0.
        steps: number of rounds, at least 0.
        delta: strictly between 0 and 1.
        grid: width of the grid of privacy losses; a coarser grid is faster and gives a larger epsilon.
    """
    if steps == 0:
        return 0.0
    composed = fixed_pld(rate, noise_multiplier, grid).self_compose(steps)
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=4)
def fixed_pld(rate: float, noise_multiplier: float, grid: float = FINE) -> "PrivacyLossDistribution":
    """Return the discretised privacy loss distribution of one round, which may be composed with others.

    Args:
        rate: as in `epsilon_fixed_pld`.
        noise_multiplier: as in `epsilon_fixed_pld`.
        grid: as in `epsilon_fixed_pld`.
    """
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

    shift = 2 / noise_multiplier
    # The loss at TAIL is at most log(1 - rate + rate e^x) <= max(0, x + log(rate)) + log 2.
    largest = max(0.0, shift * (shift / 2 + TAIL) + math.log(rate)) + math.log(2)
    cells = math.ceil(largest / grid)
    deltas = fixed_deltas(grid * np.arange(-cells, cells + 1, dtype=np.float64), rate, noise_multiplier)
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(grid, -cells, cells, deltas)
    return PrivacyLossDistribution(pmf)


def fixed_deltas(epsilons: NDArray[np.float64], rate: float, noise_multiplier: float) -> NDArray[np.float64]:
    """Return the least delta of one round at each epsilon: the curve of steps 4 and 5, of the same shape.

    Args:
        epsilons: any finite values, negative ones too.
        rate: as in `epsilon_fixed_pld`.
        noise_multiplier: as in `epsilon_fixed_pld`.
    """
    from scipy.special import log_ndtr  # type: ignore[import-untyped]

    shift, size = 2 / noise_multiplier, np.abs(epsilons)
    # log a of step 2 for a' = e^size: log(1 + (e^size - 1) / rate), written so that it does not overflow.
    log_grown = np.log(-np.expm1(-size), where=size > 0, out=np.full_like(size, -math.inf))
    log_a = np.logaddexp(0.0, size + log_grown - math.log(rate))
    log_p = log_ndtr(shift / 2 - log_a / shift)
    log_q = log_ndtr(-shift / 2 - log_a / shift) + log_a
    deltas = -rate * np.exp(log_p) * np.expm1(np.minimum(0.0, log_q - log_p))
    whole: NDArray[np.float64] = np.where(epsilons < 0, -np.expm1(-size) + np.exp(-size) * deltas, deltas)
    return whole
