"""Choose the nodes of a round among the connected ones, never more than the plan's population.

Invariants
- Nodes that were connected earlier come first. A device that comes back under a new id, or a stranger with many ids,
  displaces nobody; it joins when Flower has dropped an older id.
- The choice depends on connections alone, never on replies: these depend on the secret sample of a cohort.

>>> roster = Roster(2)
>>> roster.choose([8, 9]), roster.choose([3, 8, 9]), roster.choose([3, 9])
([8, 9], [8, 9], [3, 9])
"""

import logging
from collections.abc import Iterable

_log = logging.getLogger("fedmem.coordinator")


class Roster:
    """The connected nodes, in the order in which they were first seen.

    Args:
        population: the most nodes to choose, from the plan.
    """

    def __init__(self, population: int) -> None:
        self._population = population
        self._seen: list[int] = []

    def choose(self, connected: Iterable[int]) -> list[int]:
        """Return the ids of the nodes that a round may ask, ascending.

        Args:
            connected: ids of all nodes that are connected now.
        """
        now, before = set(connected), set(self._seen)
        self._seen = [node for node in self._seen if node in now] + sorted(now - before)
        if len(now) > self._population:
            _log.warning("%d nodes are connected, the plan has %d. The newest wait.", len(now), self._population)
        return sorted(self._seen[: self._population])
