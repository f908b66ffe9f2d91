"""A spend: what one training run costs, as a fact; epsilon is computed from it and never stored.

Invariants
- The meaning of a stored spend never changes; an unknown mechanism is refused, not guessed.
- Unit: one record. Adjacency: add or remove one record.

>>> SpendEvent.from_dict(SpendEvent(0.1, 1.2, 60).to_dict()) == SpendEvent(0.1, 1.2, 60)
True
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedmem.errors import VerificationFailed

MECHANISM = "poisson-gaussian/1"


@dataclass(frozen=True)
class SpendEvent:
    """`steps` Gaussian mechanisms of `noise_multiplier` (noise std over sensitivity), each on a Poisson sample.

    Each record is in a step's sample with probability `sampling_rate`, on its own. A zero noise multiplier
    is a spend too: its epsilon is infinite. Raises ValueError for a rate outside [0, 1], a negative or
    non-finite noise multiplier, and a negative number of steps.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        ok = 0.0 <= self.sampling_rate <= 1.0 and 0.0 <= self.noise_multiplier < math.inf and self.steps >= 0
        if not ok or isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise ValueError("a spend needs a rate in [0, 1], a finite noise multiplier >= 0 and a step count >= 0")

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as the ledger stores it."""
        return {
            "mechanism": MECHANISM,
            "sampling_rate": self.sampling_rate,
            "noise_multiplier": self.noise_multiplier,
            "steps": self.steps,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SpendEvent":
        """Inverse of `to_dict`; a digest of the public plan may stand beside it. Raises VerificationFailed."""
        fields = ("sampling_rate", "noise_multiplier", "steps")
        if set(data) - {"plan"} != {"mechanism", *fields} or data["mechanism"] != MECHANISM:
            raise VerificationFailed("The ledger holds a spend of an unknown kind; use the version that wrote it.")
        try:
            return cls(*(data[field] for field in fields))
        except (TypeError, ValueError) as error:
            raise VerificationFailed("The ledger holds an impossible spend; it was edited or damaged.") from error
