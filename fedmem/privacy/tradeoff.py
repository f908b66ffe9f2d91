"""Compute the curve of a mechanism: how well an adversary can tell if one record was in, at every rate of false alarms.

For a test that says "in" with probability x where the record is out, let F(x) be the greatest probability that it says
"in" where the record is in. It is one minus the trade-off function of f-DP (Dong, Roth and Su 2022). A curve holds more
than one pair (epsilon, delta): F(x) is the least of exp(epsilon) x + delta(epsilon) over all epsilon.

Invariants
- F is an upper bound in both orders of the neighbours: delta is the greater one, of a pessimistic PLD, and a minimum
  over finitely many epsilons is never below the true one.
- F is concave, being a minimum of lines.

>>> likely = curve(SpendEvent(1.0, 2.0, 1))
>>> bool(0.0 < likely.least_alarms(0.5) < 0.5)
True
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedmem.privacy.accounting import COARSE
from fedmem.privacy.spend import SpendEvent

EPSILONS_E = np.linspace(-20.0, 20.0, 2001)


@dataclass(frozen=True, eq=False)
class TradeoffCurve:
    """The curve of a mechanism, as upper bounds on its delta.

    Attributes:
        deltas_E: the delta at each of `EPSILONS_E`, at least the true one, in [0, 1].
    """

    deltas_E: NDArray[np.float64]

    def least_alarms(self, detection: float) -> float:
        """Return the inverse of F: the least rate of false alarms of a test with this rate of detection.

        Args:
            detection: a probability.
        """
        return max(0.0, float((np.exp(-EPSILONS_E) * (detection - self.deltas_E)).max()))


@lru_cache(maxsize=1024)
def curve(spend: SpendEvent) -> TradeoffCurve:
    """Return the curve of a spend with noise, for adding or removing one record that took part in all its steps.

    Args:
        spend: its noise multiplier is above 0.
    """
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    step = from_gaussian_mechanism(
        spend.noise_multiplier,
        sampling_prob=spend.sampling_rate,
        value_discretization_interval=COARSE,
        use_connect_dots=True,
    )
    return TradeoffCurve(np.clip(step.self_compose(spend.steps).get_delta_for_epsilon(EPSILONS_E), 0.0, 1.0))
