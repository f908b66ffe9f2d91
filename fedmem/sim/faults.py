"""What goes wrong in a simulated population: devices that a request never reaches, and devices that mean harm.

Invariants
- Who fails, and when, is a function of (scenario, seed, round, device): equal in every process (I9).
- A silent device's request is sent and lost: it counts as traffic, nothing comes back, and the round waits for it.
- A hostile device keeps to the schema and the clip norm, so nobody can tell its update by its form: the longest one,
  against the direction of its own training.

>>> faults = Faults(devices=10, silent=0.0, hostile=0.2, seed=7)
>>> len(faults.enemies), faults.loses(1, 3)
(2, False)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedmem.federation.device import LocalTrain, TrainConfig
from fedmem.federation.flower import Grid, Message, RecordDict, Run
from fedmem.federation.wire import Params
from fedmem.sim.inproc_grid import NODE_BASE

BEYOND = 1e6
"""Factor that makes any update longer than the clip norm; what is left of it after clipping is the direction."""


@dataclass(frozen=True)
class Faults:
    """Shares of `devices` that are silent in a round and that are hostile, drawn from `seed`."""

    devices: int
    silent: float
    hostile: float
    seed: int
    enemies: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        order = np.random.default_rng([self.seed, 0]).permutation(self.devices)
        object.__setattr__(self, "enemies", frozenset(order[: round(self.hostile * self.devices)].tolist()))

    def loses(self, number: int, device: int) -> bool:
        """Whether the request of round `number` is lost on its way to `device`."""
        return bool(np.random.default_rng([self.seed, 1, number, device]).random() < self.silent)

    def training(self, device: int, train: LocalTrain) -> LocalTrain:
        """The device's own training, or for a hostile one its opposite, as long as it can be."""
        return against(train) if device in self.enemies else train


def against(train: LocalTrain) -> LocalTrain:
    """Training that moves every parameter the other way, by far more than a clip norm."""

    def reversed_train(params: Params, config: TrainConfig) -> Params:
        after = train(params, config)
        far = {name: value + BEYOND * (value - after[name]) for name, value in params.items()}
        return {name: np.asarray(value, np.float32) for name, value in far.items()}

    return reversed_train


class LossyGrid(Grid):  # type: ignore[misc]  # mypy does not follow flwr
    """Another grid, on which requests to silent devices are lost."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self.inner, self.faults, self.clock = inner, faults, inner.clock

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand on what is not lost; a lost message has an id, and no answer."""
        asked = list(messages)
        lost = [self.faults.loses(int(m.metadata.group_id), m.metadata.dst_node_id - NODE_BASE) for m in asked]
        passed = iter(self.inner.push_messages([m for m, gone in zip(asked, lost, strict=True) if not gone]))
        return [f"lost-{number}" if gone else next(passed) for number, gone in enumerate(lost)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies to what was not lost."""
        yield from self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull every reply that comes."""
        return list(self.pull_messages(self.push_messages(messages)))

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all devices: nobody knows beforehand who will be silent."""
        ids: Iterable[int] = self.inner.get_node_ids()
        return ids

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message from the coordinator."""
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run: Run) -> None:
        """Work under another run id."""
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self.inner.run
