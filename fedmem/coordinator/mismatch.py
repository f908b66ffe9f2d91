"""Notice that no device can take part: another protocol, another release, or zeros from everybody.

Invariants
- One peer cannot end a run. The check fires if every connected node, or `ENOUGH` of them, answered since the last
  update that moved a coordinate, and none of these answers could.
- With noise the check looks at protocol and release alone. Zeros depend on what devices hold, and readers of the
  released anchors can see that a run ends: they are logged for the operator, who sees every update anyway.
- A device that refuses still answers with zeros (I1). The message names all reasons and does not tell them apart.

>>> check = MismatchCheck(expects_updates=True, noisy=False)
>>> check.judge({7: ReplyOutcome.MOVES, 8: ReplyOutcome.ZEROS}, [7, 8]) is None
True
>>> check.judge({7: ReplyOutcome.ZEROS, 8: ReplyOutcome.OTHER_PROTOCOL}, [7, 8])
'1 device answered with zeros alone; 1 device speaks another protocol version'
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from enum import Enum

_log = logging.getLogger("fedmem.coordinator")

ENOUGH = 32
"""Number of nodes whose answers decide in a federation of more."""
ADVICE = (
    "Compare terms file, release and version of fedmem on both sides. Devices without shareable records, and those "
    "whose own budget is spent, answer with zeros too."
)


class ReplyOutcome(Enum):
    """The effect of one reply."""

    MOVES = "moved a parameter"
    ZEROS = "answered with zeros alone"
    OTHER_PROTOCOL = "speaks another protocol version"
    OTHER_RELEASE = "holds another release"
    REFUSED = "sent what no device sends"


class MismatchCheck:
    """The outcomes of all nodes since the last reply that moved a parameter.

    Args:
        expects_updates: False where the settings of a round cannot move a parameter, so zeros are right.
        noisy: True if the plan adds noise.
    """

    def __init__(self, expects_updates: bool, noisy: bool) -> None:
        self._expects_updates, self._noisy = expects_updates, noisy
        self._fruitless: dict[int, ReplyOutcome] = {}

    def judge(self, outcomes: Mapping[int, ReplyOutcome], connected: Collection[int]) -> str | None:
        """Return what is wrong with all devices, or None if some device can take part or it is not decided yet.

        Args:
            outcomes: node id -> outcome, for each node that answered in this round.
            connected: ids of the nodes that are connected.
        """
        self._warn_of_zeros(outcomes)
        if any(map(self._is_fruitful, outcomes.values())):
            self._fruitless = {}
            return None
        connected = set(connected)
        self._fruitless = {n: o for n, o in {**self._fruitless, **outcomes}.items() if n in connected}
        nodes = [node for node, outcome in self._fruitless.items() if outcome is not ReplyOutcome.REFUSED]
        is_decided = nodes and len(nodes) >= min(len(connected), ENOUGH)
        return describe(Counter(self._fruitless[node] for node in nodes)) if is_decided else None

    def _is_fruitful(self, outcome: ReplyOutcome) -> bool:
        return outcome is ReplyOutcome.MOVES or (
            outcome is ReplyOutcome.ZEROS and (self._noisy or not self._expects_updates)
        )

    def _warn_of_zeros(self, outcomes: Mapping[int, ReplyOutcome]) -> None:
        if self._expects_updates and outcomes and set(outcomes.values()) == {ReplyOutcome.ZEROS}:
            _log.warning("No reply of this round moves a parameter: the sum is exactly zero. %s", ADVICE)


def describe(numbers: Mapping[ReplyOutcome, int]) -> str:
    """Return a clause for each outcome, with the number of its devices.

    Args:
        numbers: outcome -> number of devices.
    """
    return "; ".join(
        f"{numbers[kind]} device{'s' * (numbers[kind] > 1)} {_plural(kind.value, numbers[kind])}"
        for kind in ReplyOutcome
        if numbers.get(kind)
    )


def _plural(clause: str, number: int) -> str:
    return clause.replace("speaks", "speak").replace("holds", "hold") if number > 1 else clause
