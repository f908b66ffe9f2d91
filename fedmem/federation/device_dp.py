"""Device-level differential privacy of the federated part (docs/design.md, §7).

Invariants
- Everything that changes privacy stands in one frozen `DevicePlan`; it is public and never a function of data.
- A plan without noise says `unsafe_no_dp = true` and why, or it is refused. There is no third kind.
- Noise covers every coordinate of every array, touched or not; the divisor is the expected cohort, never the real one.
- Two figures are always given: against readers of released anchors, and against the coordinator, which is infinite.
- A figure names its adjacency: Poisson cohorts and fixed-size cohorts do not bound the same thing (`cohorts`).
- What readers can see never depends on how many devices answered: with noise, a round of few or no replies is an
  ordinary round, and whether it takes place is decided on connected devices, before the draw.

>>> plan = DevicePlan(population=8, unsafe_no_dp=True, unsafe_reason="eight devices are too few to hide in")
>>> figures(plan, rounds=2).coordinator
inf
>>> DevicePlan(population=8)
Traceback (most recent call last):
    ...
fedmem.errors.Refused: The plan adds no noise. Set noise_multiplier above 0, or unsafe_no_dp = true with unsafe_reason.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmem.canonical import digest
from fedmem.errors import BudgetExceeded, Refused, UsageError
from fedmem.federation import cohorts, fixedpoint
from fedmem.federation.cohorts import FixedSpend, Noise
from fedmem.privacy import accounting
from fedmem.privacy.spend import SpendEvent


@dataclass(frozen=True)
class DevicePlan:
    """Public terms of a federation: one device is the unit; adjacency as in `cohorts`.

    | field | meaning |
    |---|---|
    | population | declared number of devices, a public cap |
    | sampling_rate | each device joins a round with this probability (Poisson); 1.0: all join |
    | cohort_size | a round draws this many of the population without replacement instead; 0: Poisson |
    | rounds | rounds that the plan allows |
    | clip | L2 norm of one device's update, all arrays together |
    | noise_multiplier | standard deviation of the noise on the sum, in units of `clip` |
    | delta | δ of the reported ε |
    | epsilon_max | no round opens that would pass this ε; None: no limit |
    | unsafe_no_dp, unsafe_reason | this federation claims no ε, because ... |
    | run | public name of this federation: a request of another one has another plan digest |
    """

    population: int
    sampling_rate: float = 1.0
    rounds: int = 1
    clip: float = 1.0
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    epsilon_max: float | None = None
    unsafe_no_dp: bool = False
    unsafe_reason: str = ""
    cohort_size: int = 0
    run: str = ""

    def __post_init__(self) -> None:
        sound = (
            self.population >= 1
            and 0 < self.sampling_rate <= 1
            and self.rounds >= 0
            and 0 < self.clip < math.inf
            and 0 <= self.noise_multiplier < math.inf
            and 0 < self.delta < 1
            and (self.epsilon_max is None or self.epsilon_max > 0)
            and 0 <= self.cohort_size <= self.population
        )
        if not sound:
            raise UsageError("A number of the device plan is out of its range; the table of DevicePlan names them.")
        if self.cohort_size and self.sampling_rate != 1:
            raise UsageError("A plan has a cohort_size or a sampling_rate below 1, not both.")
        if self.unsafe_no_dp and not self.unsafe_reason.strip():
            raise Refused("unsafe_no_dp = true needs unsafe_reason: every report repeats it.")
        if self.noise_multiplier == 0 and not self.unsafe_no_dp:
            raise Refused(
                "The plan adds no noise. Set noise_multiplier above 0, or unsafe_no_dp = true with unsafe_reason."
            )
        fixedpoint.check_headroom(self.population, self.clip)

    @property
    def expected_cohort(self) -> float:
        """The public divisor of every round."""
        return self.cohort_size or self.population * self.sampling_rate

    @property
    def sampled(self) -> bool:
        """Whether a round draws its cohort."""
        return self.sampling_rate < 1 or self.cohort_size > 0

    @property
    def adjacency(self) -> str:
        """What the readers' ε compares."""
        return cohorts.REPLACE if self.cohort_size else cohorts.ADD_OR_REMOVE

    def to_dict(self) -> dict[str, Any]:
        """The plan as it stands in journals and reports."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DevicePlan":
        """Inverse of `to_dict`; UsageError for a key that no plan has."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise UsageError(f"A device plan has no key {sorted(unknown)[0]!r}.")
        return cls(**values)

    def digest(self) -> str:
        """What a device compares before it trains: a request names the plan it belongs to."""
        return _digest(self)


@lru_cache(maxsize=64)
def _digest(plan: DevicePlan) -> str:
    return digest(plan.to_dict())


@dataclass(frozen=True)
class Figures:
    """ε of a federation so far, both readings; `reason` is empty where `readers` is a claim about `adjacency`."""

    readers: float
    coordinator: float
    delta: float
    reason: str
    adjacency: str = cohorts.ADD_OR_REMOVE


def figures(plan: DevicePlan, rounds: int) -> Figures:
    """ε after `rounds` rounds.

    Guarantees: `readers` bounds what someone who sees every released anchor learns about one device, for a sample that
    the readers do not see: Poisson (Mironov, Talwar and Zhang 2019), add or remove one device; fixed size (Wang, Balle
    and Kasiviswanathan 2019), replace one. The coordinator sees each update in the clear, so its figure is infinite
    until secure aggregation carries the noise.

    | plan | readers |
    |---|---|
    | unsafe_no_dp | inf, with the reason |
    | no round yet | 0 |
    """
    if plan.unsafe_no_dp:
        reason = f"unsafe_no_dp = true: {plan.unsafe_reason}"
        return Figures(math.inf, math.inf, plan.delta, reason, plan.adjacency)
    event = spend(plan, rounds)
    if isinstance(event, FixedSpend):
        readers = cohorts.fixed_epsilon(event, plan.delta)
    else:
        readers = accounting.epsilon_pld([event], plan.delta)
    return Figures(readers, math.inf, plan.delta, "", plan.adjacency)


def spend(plan: DevicePlan, rounds: int) -> SpendEvent | FixedSpend:
    """What `rounds` rounds cost one device, in the ledger's terms."""
    if plan.cohort_size:
        return FixedSpend(plan.population, plan.cohort_size, plan.noise_multiplier, rounds)
    return SpendEvent(plan.sampling_rate, plan.noise_multiplier, rounds)


def check_budget(plan: DevicePlan, rounds_after: int) -> None:
    """Raise BudgetExceeded if `rounds_after` rounds in all pass the plan's rounds or its ε; asked before one opens."""
    if rounds_after > plan.rounds:
        raise BudgetExceeded(
            "The device plan allows no further round; none was opened. A new plan starts a new federation."
        )
    if plan.epsilon_max is None or plan.unsafe_no_dp:
        return
    # The upper bound without dp_accounting: a gate may err on the side of stopping, never of going on.
    event = spend(plan, rounds_after)
    if isinstance(event, FixedSpend):
        bound = cohorts.fixed_epsilon_bound(event, plan.delta)
    else:
        bound = accounting.epsilon_rdp([event], plan.delta)
    if bound > plan.epsilon_max:
        raise BudgetExceeded("Another round would pass the plan's epsilon_max; none was opened.")


def noisy_mean(sums: fixedpoint.Sums, plan: DevicePlan, noise: Noise | None) -> dict[str, NDArray[np.float32]]:
    """Decode the int64 sums, add N(0, (σC)²) to every coordinate, divide by the expected cohort; float32.

    Guarantees: Gaussian mechanism on a sum that one device moves by `plan.clip`, and by twice that where it is replaced
    (Dwork and Roth 2014, App. A; composed by `figures`); the divisor is public. Arrays are visited by sorted name:
    equal streams, equal bytes.

    | input | result |
    |---|---|
    | empty cohort | noise alone, an ordinary round |
    | noise_multiplier 0 (unsafe) | the plain mean |
    """
    step, std = fixedpoint.grid_step(plan.clip), plan.noise_multiplier * plan.clip
    mean = {}
    for name in sorted(sums):
        total = fixedpoint.decode(sums[name], step)
        if std > 0:
            if noise is None:
                raise Refused("This plan adds noise, so the coordinator needs a privacy stream.")
            total = total + noise.normal(total.size, std).astype(np.float64).reshape(total.shape)
        mean[name] = (total / plan.expected_cohort).astype(np.float32)
    return mean


def cohort(nodes: list[int], plan: DevicePlan, noise: Noise | None) -> list[int]:
    """The devices of a round, sorted: a Poisson or a fixed-size sample by the plan; everyone where it does not draw."""
    ordered = sorted(nodes)
    if not plan.sampled:
        return ordered
    if noise is None:
        raise Refused("This plan samples, so the coordinator needs a privacy stream.")
    if plan.cohort_size:
        return cohorts.fixed(ordered, plan.population, plan.cohort_size, noise)
    return cohorts.poisson(ordered, plan.sampling_rate, noise)
