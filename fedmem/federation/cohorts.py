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
| fixed size | replace one device by another | 2 × clip | RDP (Wang, Balle and Kasiviswanathan 2019, Theorem 27) |

>>> spend = FixedSpend(population=1000, cohort=50, noise_multiplier=4.0, steps=100)
>>> fixed_epsilon(spend, 1e-5) < fixed_epsilon_bound(spend, 1e-5)
True
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedmem.privacy import accounting

ADD_OR_REMOVE, REPLACE = "add or remove one device", "replace one device by another"
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

    `noise_multiplier` is the standard deviation of the noise in clip norms. Under replace-one the sensitivity of the
    sum is two clip norms.
    """

    population: int
    cohort: int
    noise_multiplier: float
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that the ledger stores."""
        return {"mechanism": MECHANISM, **vars(self)}


def poisson(nodes: list[int], rate: float, noise: Noise) -> list[int]:
    """Return a Poisson sample of the sorted `nodes`: each is drawn independently, with probability `rate` in (0, 1]."""
    joins = noise.bernoulli(len(nodes), rate)
    return [node for node, joined in zip(nodes, joins, strict=True) if joined]


def fixed(nodes: list[int], population: int, size: int, noise: Noise) -> list[int]:
    """Return the sorted `nodes` whose places are in a uniform sample of `size` out of `population` places.

    Guarantees: every set of `size` places is equally likely. The first places belong to the nodes. The others stand for
    declared devices that are not connected, so the result may have fewer than `size` nodes.
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


@lru_cache(maxsize=256)
def fixed_epsilon(spend: FixedSpend, delta: float) -> float:
    """Return ε at `delta` of fixed-size rounds, for replacing one device's update by any other.

    Guarantees: an upper bound by RDP (Wang et al. 2019, Theorem 27, through dp_accounting), for noise of
    `noise_multiplier` clip norms on a sum whose sensitivity is two clip norms. dp_accounting's RDP does not double the
    sensitivity under replace-one, so this function halves the noise.

    | input | ε |
    |---|---|
    | no round | 0 |
    | noise_multiplier 0 | inf |
    | cohort = population | that of the plain Gaussian mechanism |
    """
    if spend.steps == 0 or spend.noise_multiplier == 0:
        return math.inf if spend.steps else 0.0
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS.tolist(), dp_accounting.NeighboringRelation.REPLACE_ONE)
    gaussian = dp_accounting.GaussianDpEvent(spend.noise_multiplier / 2)
    sampled = dp_accounting.SampledWithoutReplacementDpEvent(spend.population, spend.cohort, gaussian)
    accountant.compose(sampled, spend.steps)
    return float(accountant.get_epsilon(delta))


def fixed_epsilon_bound(spend: FixedSpend, delta: float) -> float:
    """Return an upper bound on `fixed_epsilon`, computed in numpy alone: Wang et al. 2019, Theorem 9.

    `check_budget` uses it before a round opens. The edge cases are those of `fixed_epsilon`.
    """
    if spend.steps == 0 or spend.noise_multiplier == 0:
        return math.inf if spend.steps else 0.0
    orders = ORDERS.astype(np.float64)
    total = spend.steps * _fixed_rdp(spend.cohort / spend.population, spend.noise_multiplier / 2)
    epsilons = total + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(epsilons.min()))


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
