"""Define the frozen plan that decides the privacy of a training run.

Invariants
- Every field is public configuration: none is a function of the private records, their number included.
- A plan that makes no sense is refused when it is made, not when it is used.
- Sizes are checked against a declared public cap: delta <= 1 / (10 * record_cap).

`PrivacyPlan.small` is for topics of 200 to 2,000 records, with a block of width 16 and Adam at a rate that falls from
3e-2. A block starts with M3 = 0, where the gradient of a record has a norm of 0.05 to 0.1. A clip norm far above that
adds noise and no signal. The values were chosen on public text alone: docs/privacy.md has the table.

The divisor is the expected sample size for a public nominal number of records. With Adam it sets the scale of Adam's
epsilon.

>>> plan = PrivacyPlan.small(record_cap=1000).calibrate(8.0)
>>> bool(7.9 < plan.epsilon() <= 8.0)
True
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fedmem.errors import Refused, UsageError
from fedmem.privacy.accounting import COARSE, epsilon_pld
from fedmem.privacy.grid import Grid
from fedmem.privacy.spend import SpendEvent

NOISE_LIMIT = 2.0**14
MOST_STEPS = 100_000
PRECISION = 1e-3
DELTA = 1e-5


@dataclass(frozen=True)
class PrivacyPlan:
    """The plan of a DP-SGD run on one block. Unit: one record. Adjacency: add or remove one record.

    Attributes:
        sampling_rate: probability of each record in each step.
        steps: number of steps.
        clip: the L2 norm to which the gradient of a record is clipped.
        noise_multiplier: noise std divided by `clip`.
        divisor: divisor of the noisy sum.
        delta: the delta of the guarantee.
        record_cap: the declared greatest number of records.

    | value | outcome |
    |---|---|
    | rate outside (0, 1], steps < 1, divisor <= 0, anything NaN or infinite | UsageError |
    | clip 0, negative, NaN or infinite | Refused |
    | more than 100,000 steps: too many for a device, and composing them takes minutes | UsageError |
    | delta above 1 / (10 * record_cap) | Refused |
    | noise_multiplier 0 | allowed, epsilon is infinite: any finite budget refuses it |
    """

    sampling_rate: float
    steps: int
    clip: float
    noise_multiplier: float
    divisor: float
    delta: float
    record_cap: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise Refused("A clip norm is a finite number above 0; nothing was computed. Give another one.")
        positive = (self.sampling_rate, self.divisor, self.delta)
        if not all(math.isfinite(value) and value > 0 for value in positive) or self.sampling_rate > 1:
            raise UsageError("A privacy plan needs a rate in (0, 1] and a finite divisor and delta above 0.")
        if not 0.0 <= self.noise_multiplier < math.inf:
            raise UsageError("A privacy plan needs a finite noise multiplier that is not negative.")
        if any(type(value) is not int or value < 1 for value in (self.steps, self.record_cap)):
            raise UsageError("A privacy plan needs whole numbers of steps and of capped records, at least 1 each.")
        if self.steps > MOST_STEPS:
            raise UsageError(f"A privacy plan has at most {MOST_STEPS:,} steps; take fewer at a higher rate.")
        if self.delta > 1 / (10 * self.record_cap):
            raise Refused(
                f"delta {self.delta:g} is above 1/(10 x {self.record_cap} records); declare a smaller delta or cap."
            )

    @classmethod
    def small(cls, *, record_cap: int, noise_multiplier: float = 0.0, nominal: int = 400) -> "PrivacyPlan":
        """Return the default plan for small topics; calibrate it before use.

        Args:
            record_cap: the declared greatest number of records.
            noise_multiplier: noise std divided by the clip norm.
            nominal: a public guess at the number of records; it sets the divisor.
        """
        rate = 0.15
        return cls(
            sampling_rate=rate,
            steps=80,
            clip=0.1,
            noise_multiplier=noise_multiplier,
            divisor=rate * nominal,
            delta=DELTA,
            record_cap=record_cap,
        )

    @property
    def spend(self) -> SpendEvent:
        """The spend of a complete run of this plan."""
        return SpendEvent(self.sampling_rate, self.noise_multiplier, self.steps)

    def grid(self, values: int) -> Grid:
        """Return the grid on which records of this plan are summed.

        Args:
            values: number of values of the block.

        Raises:
            Refused: there is none; nothing may be computed or charged then.
        """
        return Grid.fitting(self.clip, self.noise_multiplier, values, self.record_cap)

    def epsilon(self) -> float:
        """Return the epsilon of one run at this plan's delta, by PLD; infinite without noise."""
        return epsilon_pld([self.spend], self.delta)

    def calibrate(self, target_epsilon: float) -> "PrivacyPlan":
        """Return this plan with the smallest noise multiplier, to 0.1 %, that gives at most `target_epsilon`.

        Guarantees: the epsilon of the returned plan is at most `target_epsilon`.

        Args:
            target_epsilon: finite and above 0.

        Raises:
            UsageError: the target is out of range.
            Refused: no noise multiplier up to 16,384 reaches the target.
        """
        if not (math.isfinite(target_epsilon) and target_epsilon > 0):
            raise UsageError("The target epsilon must be a finite number above 0.")
        low, high = 0.0, 0.5
        while not self._reaches(high, target_epsilon):
            low, high = high, 2 * high
            if high > NOISE_LIMIT:
                raise Refused(f"No noise brings this plan to epsilon {target_epsilon:g}; take fewer steps.")
        while high - low > PRECISION * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self._reaches(middle, target_epsilon) else (middle, high)
        plan = replace(self, noise_multiplier=high)
        # The search used the coarse grid; the reported epsilon is computed on the fine one.
        while plan.epsilon() > target_epsilon:
            plan = replace(plan, noise_multiplier=plan.noise_multiplier * (1 + PRECISION))
        return plan

    def _reaches(self, noise_multiplier: float, target_epsilon: float) -> bool:
        spend = replace(self.spend, noise_multiplier=noise_multiplier)
        return epsilon_pld([spend], self.delta, grid=COARSE) <= target_epsilon

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PrivacyPlan":
        """Return the plan of a JSON form.

        Args:
            data: the value of each field, as `to_dict` returns them.

        Raises:
            UsageError: fields are missing or unknown.
            UsageError, Refused: as `PrivacyPlan`.
        """
        if set(data) != {field.name for field in fields(cls)}:
            raise UsageError("A privacy plan has missing or unknown fields; compare it with PrivacyPlan.")
        return cls(**data)
