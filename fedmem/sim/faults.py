"""Simulate faults of a population: devices that a request never reaches, and hostile devices.

Invariants
- Which device fails in which round is a function of (scenario, seed, round, device). It is equal in every process (I9).
- A request to a silent device is sent and lost. It counts as traffic, no reply comes, and the round waits for it.
- A hostile device obeys the schema and the clip norm, so the form of its update does not reveal it. It sends the
  longest update in the direction opposite to its own training.

>>> faults = Faults(devices=10, silent=0.0, hostile=0.2, seed=7)
>>> len(faults.hostile_devices), faults.loses_request(1, 3)
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

FAR = 1e6
"""A factor that makes every update longer than the clip norm; clipping then leaves only its direction."""


@dataclass(frozen=True)
class Faults:
    """The devices that are silent in a round, and those that are hostile.

    Attributes:
        devices: the number of devices.
        silent: the share of devices that a round's request never reaches, 0 to 1.
        hostile: the share of hostile devices, 0 to 1.
        seed: decides which devices they are.
        hostile_devices: the indices of the hostile devices.
    """

    devices: int
    silent: float
    hostile: float
    seed: int
    hostile_devices: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        order = np.random.default_rng([self.seed, 0]).permutation(self.devices)
        object.__setattr__(self, "hostile_devices", frozenset(order[: round(self.hostile * self.devices)].tolist()))

    def loses_request(self, number: int, device: int) -> bool:
        """Return True if the request of round `number` is lost on its way to `device`.

        Args:
            number: the number of the round, from 1.
            device: the index of the device.
        """
        return bool(np.random.default_rng([self.seed, 1, number, device]).random() < self.silent)

    def training_of(self, device: int, train: LocalTrain) -> LocalTrain:
        """Return the training of a device: its own, or for a hostile device the reversed one.

        Args:
            device: the index of the device.
            train: its own training.
        """
        return reverse_training(train) if device in self.hostile_devices else train


def reverse_training(train: LocalTrain) -> LocalTrain:
    """Return a training that moves every parameter in the opposite direction, by far more than a clip norm.

    Args:
        train: the training of a device.
    """

    def reversed_train(params: Params, config: TrainConfig) -> Params:
        trained_params = train(params, config)
        reversed_params = {name: value + FAR * (value - trained_params[name]) for name, value in params.items()}
        return {name: np.asarray(value, np.float32) for name, value in reversed_params.items()}

    return reversed_train


class LossyGrid(Grid):  # type: ignore[misc]  # mypy does not follow flwr
    """A grid around another grid that loses requests to silent devices.

    Args:
        inner: the grid that delivers what is not lost.
        faults: decides which requests are lost.
    """

    def __init__(self, inner: Any, faults: Faults) -> None:
        self.inner, self.faults, self.clock = inner, faults, inner.clock

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on the requests that are not lost; a lost request gets an id and no reply.

        Args:
            messages: the requests of a round.
        """
        requests = list(messages)
        lost_flags = [
            self.faults.loses_request(int(m.metadata.group_id), m.metadata.dst_node_id - NODE_BASE) for m in requests
        ]
        passed_ids = iter(
            self.inner.push_messages([m for m, is_lost in zip(requests, lost_flags, strict=True) if not is_lost])
        )
        return [f"lost-{number}" if is_lost else next(passed_ids) for number, is_lost in enumerate(lost_flags)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies to requests that were not lost.

        Args:
            message_ids: ids that `push_messages` returned.
        """
        yield from self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push the requests, then return every reply that comes.

        Args:
            messages: the requests of a round.
            timeout: has no effect.
        """
        return list(self.pull_messages(self.push_messages(messages)))

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all devices; silent ones are not known beforehand."""
        ids: Iterable[int] = self.inner.get_node_ids()
        return ids

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message from the coordinator.

        Args:
            content: the content of the message.
            message_type: its type, such as `train.anchor`.
            dst_node_id: the node id of the device.
            group_id: the number of the round.
            ttl: seconds until Flower drops the message; None for Flower's default.
        """
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to.

        Args:
            run: Flower's run.
        """
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self.inner.run
