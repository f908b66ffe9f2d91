"""Device-level differential privacy of the federated part (docs/design.md, §7).

Invariants
- All settings that change privacy are fields of one frozen `DevicePlan`. It is public and never a function of data.
- A plan without noise needs `unsafe_no_dp = true` and a reason, or it is refused.
- Updates are summed in grid cells, and so is the noise; it is added before anything is decoded. What follows, the
  division and the server's step, is post-processing.
- Noise covers every coordinate of every array. The divisor is the expected cohort, never the real one.
- Two values of ε are always given: against readers of released anchors, and against the coordinator, which is infinite.
- A value of ε names its adjacency: Poisson cohorts and fixed-size cohorts have different ones (`cohorts`).
- The results that readers can see never depend on the number of replies. With noise, a round of few or no replies is an
  ordinary round. The decision to open a round depends on the connected devices, before the cohort is drawn.

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

from fedmem.errors import BudgetExceeded, Refused, UsageError
from fedmem.federation import cohorts, fixedpoint
from fedmem.federation.cohorts import FixedSpend, Noise
from fedmem.privacy import accounting
from fedmem.privacy.rounded_gaussian import LEAST_STD, MOST_STD, MOST_VALUES, REACH, rounded_gaussian
from fedmem.privacy.spend import SpendEvent
from fedmem.storage.canonical import digest

FIXED_BOUNDS = cohorts.fixed_epsilon_bound, cohorts.fixed_epsilon
"""Upper bounds on the ε of fixed-size rounds, the fast one first."""


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
    | unsafe_no_dp, unsafe_reason | this federation claims no ε, for this reason |
    | run | public name of this federation; a request of another federation has another plan digest |
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
        in_range = (
            self.population >= 1
            and 0 < self.sampling_rate <= 1
            and self.rounds >= 0
            and 0 <= self.noise_multiplier < math.inf
            and 0 < self.delta < 1
            and (self.epsilon_max is None or self.epsilon_max > 0)
            and 0 <= self.cohort_size <= self.population
        )
        if not 0 < self.clip < math.inf:
            raise Refused("The clip norm of a device plan is a finite number above 0; nothing was computed.")
        if not in_range:
            raise UsageError("A number of the device plan is out of its range; the table of DevicePlan names them.")
        if self.cohort_size and self.sampling_rate != 1:
            raise UsageError("A plan has a cohort_size or a sampling_rate below 1, not both.")
        if self.unsafe_no_dp and not self.unsafe_reason.strip():
            raise Refused("unsafe_no_dp = true needs unsafe_reason: every report repeats it.")
        if self.noise_multiplier == 0 and not self.unsafe_no_dp:
            raise Refused(
                "The plan adds no noise. Set noise_multiplier above 0, or unsafe_no_dp = true with unsafe_reason."
            )
        std = self.noise_multiplier * (self.clip / fixedpoint.grid_step(self.clip))
        if std and not LEAST_STD <= std < MOST_STD:
            raise Refused("The noise is too small or too large for the grid; choose another noise_multiplier.")
        fixedpoint.check_headroom(self.population, self.clip, math.ceil(REACH * std))

    @property
    def expected_cohort(self) -> float:
        """The expected number of devices in a round: the public divisor of every sum."""
        return self.cohort_size or self.population * self.sampling_rate

    @property
    def sampled(self) -> bool:
        """True if a round draws its cohort at random."""
        return self.sampling_rate < 1 or self.cohort_size > 0

    @property
    def adjacency(self) -> str:
        """The adjacency of the readers' ε: `cohorts.REPLACE` or `cohorts.ADD_OR_REMOVE`."""
        return cohorts.REPLACE if self.cohort_size else cohorts.ADD_OR_REMOVE

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of the plan, for journals and reports."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DevicePlan":
        """Return the plan of its JSON form.

        Args:
            values: field -> value, as `to_dict` returns them. Fields with a default may be missing.

        Raises:
            UsageError: a key is unknown or a number is out of its range.
            Refused: as `DevicePlan`.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise UsageError(f"A device plan has no key {sorted(unknown)[0]!r}.")
        return cls(**values)

    def digest(self) -> str:
        """Return the SHA-256 of the plan, hex. A request carries it, and a device compares it before it trains."""
        return _digest(self)


@lru_cache(maxsize=64)
def _digest(plan: DevicePlan) -> str:
    return digest(plan.to_dict())


@dataclass(frozen=True)
class Figures:
    """ε of a federation after its rounds so far.

    | field | meaning |
    |---|---|
    | readers | ε against readers of the released anchors |
    | coordinator | ε against the coordinator |
    | delta | δ of both |
    | reason | why the plan claims no ε; empty where it claims one |
    | adjacency | the adjacency of `readers` |
    | accounting | name of the method that computed `readers`; empty without an ε |
    """

    readers: float
    coordinator: float
    delta: float
    reason: str
    adjacency: str = cohorts.ADD_OR_REMOVE
    accounting: str = ""


def figures(plan: DevicePlan, rounds: int) -> Figures:
    """Return both values of ε after `rounds` rounds.

    Guarantees: `readers` is an upper bound against someone who sees every released anchor and does not see the samples.
    For Poisson cohorts (`accounting.epsilon_pld`) the adjacency is to add or remove one device; for fixed-size cohorts
    (`cohorts.fixed_epsilon`) it is to replace one. The coordinator sees each update in the clear, so its ε is infinite
    until secure aggregation adds the noise.

    | plan | readers |
    |---|---|
    | unsafe_no_dp | inf, with the reason |
    | no round yet | 0 |

    Args:
        plan: the public terms.
        rounds: number of rounds so far, at least 0.
    """
    if plan.unsafe_no_dp:
        reason = f"unsafe_no_dp = true: {plan.unsafe_reason}"
        return Figures(math.inf, math.inf, plan.delta, reason, plan.adjacency)
    event = spend(plan, rounds)
    if isinstance(event, FixedSpend):
        readers, method = cohorts.fixed_epsilon(event, plan.delta), cohorts.fixed_accounting(event)
    else:
        readers = accounting.epsilon_pld([event], plan.delta)
        method = cohorts.POISSON_PLD if readers <= accounting.HOPELESS else cohorts.POISSON_RDP
    return Figures(readers, math.inf, plan.delta, "", plan.adjacency, method)


def spend(plan: DevicePlan, rounds: int) -> SpendEvent | FixedSpend:
    """Return the spend of `rounds` rounds, as a ledger records it.

    Args:
        plan: the public terms.
        rounds: number of rounds, at least 0.
    """
    if plan.cohort_size:
        return FixedSpend(plan.population, plan.cohort_size, plan.noise_multiplier, rounds)
    return SpendEvent(plan.sampling_rate, plan.noise_multiplier, rounds)


def check_budget(plan: DevicePlan, rounds_after: int) -> None:
    """Check that a plan allows a number of rounds.

    Args:
        plan: the public terms.
        rounds_after: number of rounds in total, with the next one.

    Raises:
        BudgetExceeded: the rounds exceed the plan's `rounds` or its `epsilon_max`.
    """
    if rounds_after > plan.rounds:
        raise BudgetExceeded(
            "The device plan allows no further round; none was opened. A new plan starts a new federation."
        )
    if plan.epsilon_max is None or plan.unsafe_no_dp:
        return
    # Upper bounds: they may stop the rounds too early, never too late.
    event = spend(plan, rounds_after)
    if isinstance(event, FixedSpend):
        is_over = all(bound(event, plan.delta) > plan.epsilon_max for bound in FIXED_BOUNDS)
    else:
        is_over = accounting.epsilon_rdp([event], plan.delta) > plan.epsilon_max
    if is_over:
        raise BudgetExceeded("Another round would pass the plan's epsilon_max; none was opened.")


def noisy_mean(sums: fixedpoint.Sums, plan: DevicePlan, noise: Noise | None) -> dict[str, NDArray[np.float32]]:
    """Return the noisy sums, decoded and divided by the expected cohort: float32.

    Guarantees: the Gaussian mechanism of std σC in every coordinate (Dwork and Roth 2014, App. A; composed by
    `figures`), rounded to the grid (`fedmem.privacy.rounded_gaussian`). Adding or removing one device changes the sum
    by at most `plan.clip`; replacing one changes it by at most twice that, in exact integer arithmetic. The divisor is
    public. Arrays are processed in the order of their names, so equal streams give equal bytes.

    | input | result |
    |---|---|
    | no update | noise alone, an ordinary round |
    | noise_multiplier 0 (unsafe) | the plain mean |

    Args:
        sums: name -> sum of the clipped updates in grid cells, int64.
        plan: the public terms.
        noise: the stream of this round; None only if the plan adds no noise.

    Returns:
        Name -> mean, float32, of the shapes of `sums`.

    Raises:
        Refused: the plan adds noise, and `noise` is None or there are more coordinates than `MOST_VALUES`.
    """
    step, noisy = fixedpoint.grid_step(plan.clip), _noisy(sums, plan, noise)
    return {n: (fixedpoint.decode(noisy[n], step) / plan.expected_cohort).astype(np.float32) for n in sorted(noisy)}


def _noisy(sums: fixedpoint.Sums, plan: DevicePlan, noise: Noise | None) -> fixedpoint.Sums:
    if plan.noise_multiplier == 0:
        return sums
    if noise is None:
        raise Refused("This plan adds noise, so the coordinator needs a privacy stream.")
    if sum(total.size for total in sums.values()) > MOST_VALUES:
        raise Refused("The federated part has too many coordinates for noise; federate fewer of them.")
    std = plan.noise_multiplier * (plan.clip / fixedpoint.grid_step(plan.clip))
    return {n: sums[n] + rounded_gaussian(noise, sums[n].size, std).reshape(sums[n].shape) for n in sorted(sums)}


def cohort(nodes: list[int], plan: DevicePlan, noise: Noise | None) -> list[int]:
    """Return the devices of a round, sorted: a sample of `nodes` by the plan, or all where the plan does not sample.

    Args:
        nodes: ids of the connected devices, in any order.
        plan: the public terms.
        noise: the stream of this round; None only if the plan does not sample.

    Raises:
        Refused: the plan samples and `noise` is None.
    """
    ordered = sorted(nodes)
    if not plan.sampled:
        return ordered
    if noise is None:
        raise Refused("This plan samples, so the coordinator needs a privacy stream.")
    if plan.cohort_size:
        return cohorts.draw_fixed(ordered, plan.population, plan.cohort_size, noise)
    return cohorts.draw_poisson(ordered, plan.sampling_rate, noise)
