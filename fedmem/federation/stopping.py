"""Early stop: a public rule on public held-out loss, journalled, so that a resumed run ends at the same round.

Invariants
- The decision is a function of the losses in the journal and of the rule; losses are of public text and of released
  parameters, so they cost no privacy.
- A loss that is no number is no improvement.

>>> rule = EarlyStop(loss=lambda params: 0.0, rounds=2, margin=0.1)
>>> plateau([3.0, 2.0, 1.95], rule), plateau([3.0, 2.0, 1.95, 1.99], rule)
(False, True)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedmem.errors import UsageError
from fedmem.federation.wire import Params


@dataclass(frozen=True)
class EarlyStop:
    """Stop after `rounds` rounds in a row whose public held-out `loss` is not `margin` below the best before them."""

    loss: Callable[[Params], float]
    rounds: int
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.margin >= 0:
            raise UsageError("An early stop waits for one round at least, and its margin is not negative.")


def plateau(losses: Sequence[float], rule: EarlyStop) -> bool:
    """Whether the last `rule.rounds` of `losses` all failed to beat the best loss before them by the margin."""
    if len(losses) <= rule.rounds:
        return False
    best = min(losses[: -rule.rounds])
    return not any(loss < best - rule.margin for loss in losses[-rule.rounds :])
