"""Define a spend: the facts from which the cost of one training run is computed. Epsilon is never stored.

Invariants
- The meaning of a stored spend never changes. An unknown mechanism is refused.
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
    """The spend of a training run: `steps` Gaussian mechanisms, each on a Poisson sample of the records.

    Attributes:
        sampling_rate: probability, in [0, 1], of each record in the sample of a step, independent of other records.
        noise_multiplier: noise std divided by the sensitivity, finite and at least 0; with 0 epsilon is infinite.
        steps: number of steps, at least 0.

    Raises:
        ValueError: a value is out of range.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        is_in_range = 0.0 <= self.sampling_rate <= 1.0 and 0.0 <= self.noise_multiplier < math.inf and self.steps >= 0
        if not is_in_range or isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise ValueError("a spend needs a rate in [0, 1], a finite noise multiplier >= 0 and a step count >= 0")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as the ledger stores it."""
        return {
            "mechanism": MECHANISM,
            "sampling_rate": self.sampling_rate,
            "noise_multiplier": self.noise_multiplier,
            "steps": self.steps,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "SpendEvent":
        """Return the spend of a JSON form, which may also hold a digest of the public plan.

        Args:
            data: the JSON form, as `to_dict` returns it.

        Raises:
            VerificationFailed: the mechanism is unknown or a value is out of range.
        """
        fields = ("sampling_rate", "noise_multiplier", "steps")
        if set(data) - {"plan"} != {"mechanism", *fields} or data["mechanism"] != MECHANISM:
            raise VerificationFailed("The ledger holds a spend of an unknown kind; use the version that wrote it.")
        try:
            return cls(*(data[field] for field in fields))
        except (TypeError, ValueError) as error:
            raise VerificationFailed("The ledger holds an impossible spend; it was edited or damaged.") from error
