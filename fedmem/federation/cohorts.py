"""Draw the cohort of a round and compute its privacy cost: Poisson samples, or fixed-size samples without replacement.

Invariants
- Draws come from the privacy stream alone. The sample is never published, because amplification by sampling needs a
  secret sample.
- A fixed-size sample is drawn from the declared population, connected or not. The chance of a device is therefore
  cohort / population, however many others are connected.
- Each kind has its own adjacency; the two figures must not be compared without it:

| kind | adjacency | sensitivity of the sum | accounting |
|---|---|---|---|
| Poisson | add or remove one device | clip | PLD (Mironov, Talwar and Zhang 2019 for the gate) |
| fixed size | replace one device by another | 2 × clip | PLD (`accounting_fixed`); RDP without dp_accounting |

>>> spend = FixedSpend(population=1000, cohort=50, noise_multiplier=4.0, steps=100)
>>> fixed_epsilon(spend, 1e-5) < fixed_epsilon_bound(spend, 1e-5)
True
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmem.privacy import accounting
from fedmem.privacy.accounting import FINE
from fedmem.privacy.accounting_fixed import epsilon_fixed_pld
from fedmem.privacy.rounded_gaussian import STEP_EPSILON
from fedmem.privacy.spend import SpendEvent

POISSON_PLD, POISSON_RDP = (
    "PLD of Poisson samples (Koskela et al. 2020)",
    "RDP of Poisson samples (Mironov et al. 2019)",
)
FIXED_PLD = "PLD of fixed-size samples (Zhu, Dong and Wang 2022)"
FIXED_RDP = "RDP of fixed-size samples (Wang, Balle and Kasiviswanathan 2019)"
ADD_OR_REMOVE, REPLACE = "add or remove one device", "replace one device by another"
TAIL_MASS, MOST_LOSS = 1e-15, 1e5
"""The tail that dp_accounting cuts off PLD's grid, and the largest loss on it: two million cells at a width of 0.1."""
MECHANISM = "fixed-gaussian/1"
# Above order 128 the exact bound takes seconds; higher orders lower ε only where it is below 0.1.
ORDERS = accounting.ORDERS[accounting.ORDERS <= 128]


class Noise(Protocol):
    """The methods of `fedmem.privacy.stream.PrivacyStream` that a federation uses."""

    def words(self, n: int) -> NDArray[np.uint64]: ...
    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]: ...
    def substream(self, label: bytes) -> "Noise": ...


@dataclass(frozen=True)
class FixedSpend:
    """`steps` Gaussian sums, each over `cohort` of `population` devices drawn without replacement.

    Attributes:
        population: number of devices that the plan declares.
        cohort: number of devices in each sum.
        noise_multiplier: standard deviation of the noise in clip norms. Under replace-one the sensitivity of the sum is
            two clip norms.
        steps: number of rounds, from 0.
    """

    population: int
    cohort: int
    noise_multiplier: float
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that the ledger stores."""
        return {"mechanism": MECHANISM, **vars(self)}


def draw_poisson(nodes: list[int], rate: float, noise: Noise) -> list[int]:
    """Return a Poisson sample of the nodes: each is drawn independently.

    Args:
        nodes: ids of the connected devices, sorted.
        rate: probability of each device, in (0, 1].
        noise: the privacy stream of this round's cohort.
    """
    joins = noise.bernoulli(len(nodes), rate)
    return [node for node, joined in zip(nodes, joins, strict=True) if joined]


def draw_fixed(nodes: list[int], population: int, size: int, noise: Noise) -> list[int]:
    """Return the nodes whose places are in a uniform sample of `size` out of `population` places.

    Guarantees: every set of `size` places is equally likely. The first places belong to the nodes. The others stand for
    declared devices that are not connected, so the result may have fewer than `size` nodes.

    Args:
        nodes: ids of the connected devices, sorted; at most `population`.
        population: number of devices that the plan declares.
        size: size of the sample, 1 to `population`.
        noise: the privacy stream of this round's cohort.
    """
    chosen = set(np.argsort(_distinct_keys(population, noise), kind="stable")[:size].tolist())
    return [node for place, node in enumerate(nodes) if place in chosen]


def _distinct_keys(count: int, noise: Noise) -> NDArray[np.uint64]:
    """Return `count` different uniform 64-bit keys. If two are equal, all are drawn again: ranks stay uniform."""
    while True:
        bits = noise.bernoulli(64 * count, 0.5)
        keys = np.packbits(bits).view(np.uint64)
        if len(np.unique(keys)) == count:
            return keys


def fixed_epsilon(spend: FixedSpend, delta: float) -> float:
    """Return ε at `delta` of fixed-size rounds, for replacing one device's update by any other.

    Guarantees: an upper bound, for noise of `noise_multiplier` clip norms on a sum whose sensitivity is two clip norms.
    The error of the noise sampler, `rounded_gaussian.STEP_EPSILON` a round, is added.
    It is the lesser of the PLD figure (`accounting_fixed`) and `fixed_epsilon_bound`. Without dp_accounting, and where
    the losses are too large for a grid, it is `fixed_epsilon_bound`; `fixed_accounting` names the one.

    | input | ε |
    |---|---|
    | no round | 0 |
    | noise_multiplier 0 | inf |
    | cohort = population | that of the plain Gaussian mechanism |

    Args:
        spend: the rounds.
        delta: δ, in (0, 1).
    """
    bound = fixed_epsilon_bound(spend, delta)
    if fixed_accounting(spend) == FIXED_RDP:
        return bound
    rate, grid = spend.cohort / spend.population, FINE * max(1.0, _loss_range(spend) / accounting.HOPELESS)
    exact = epsilon_fixed_pld(rate, spend.noise_multiplier, spend.steps, delta, grid)
    return min(bound, exact + spend.steps * STEP_EPSILON)


def fixed_accounting(spend: FixedSpend) -> str:
    """Return the name of the accounting behind `fixed_epsilon`: `FIXED_PLD` or `FIXED_RDP`.

    Args:
        spend: the rounds.
    """
    return FIXED_PLD if find_spec("dp_accounting") and _loss_range(spend) <= MOST_LOSS else FIXED_RDP


def _loss_range(spend: FixedSpend) -> float:
    """Return about the largest loss on PLD's grid: by RDP, of such rounds with Poisson cohorts and half the noise."""
    similar = SpendEvent(spend.cohort / spend.population, spend.noise_multiplier / 2, spend.steps)
    return accounting.epsilon_rdp([similar], TAIL_MASS)


def fixed_epsilon_bound(spend: FixedSpend, delta: float) -> float:
    """Return an upper bound on ε by RDP, computed in numpy alone: Wang et al. 2019, Theorem 9.

    `check_budget` uses it before a round opens. The edge cases are those of `fixed_epsilon`.

    Args:
        spend: the rounds.
        delta: δ, in (0, 1).
    """
    if spend.steps == 0:
        return 0.0
    return accounting.epsilon_of_rdp(fixed_rdp(spend), ORDERS, delta) + spend.steps * STEP_EPSILON


def fixed_rdp(spend: FixedSpend) -> NDArray[np.float64]:
    """Return the Rényi divergence of all rounds of `spend` at each of `ORDERS`; infinite without noise.

    Args:
        spend: the rounds.

    Returns:
        Divergences `[N]` for the N `ORDERS`, under replacing one device by another.
    """
    if spend.noise_multiplier == 0:
        return np.full(len(ORDERS), math.inf if spend.steps else 0.0)
    return spend.steps * _fixed_rdp(spend.cohort / spend.population, spend.noise_multiplier / 2)


@lru_cache(maxsize=256)
def _fixed_rdp(rate: float, noise: float) -> NDArray[np.float64]:
    if rate == 1.0:
        return ORDERS / (2 * noise**2)
    return np.array([_log_moment(int(order), rate, noise) / (int(order) - 1) for order in ORDERS])


def _log_moment(order: int, rate: float, noise: float) -> float:
    """Return log(1 + Σ_j binom(α, j) q^j b_j): with the b_j of Wang et al. 2019, Theorem 9.

    b_2 = min(4 (e^ε(2) - 1), 2 e^ε(2)), b_j = 2 e^((j-1) ε(j)), ε(j) = j / 2σ².
    """
    j = np.arange(2, order + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, order + 1)))])
    log_binomial = log_factorial[order] - log_factorial[j] - log_factorial[order - j]
    parts = math.log(2) + (j - 1) * j / (2 * noise**2)
    two = 1 / noise**2
    # log(4 (e^x - 1)) without overflow.
    parts[0] = min(parts[0], math.log(4) + two + math.log(-math.expm1(-two)))
    terms = np.concatenate([[0.0], log_binomial + j * math.log(rate) + parts])
    largest = terms.max()
    return float(largest + np.log(np.exp(terms - largest).sum()))
