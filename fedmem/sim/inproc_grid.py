"""Implement Flower's `Grid` in one process: real ClientApps and Messages, no Ray, no socket (docs/design.md, §10).

Invariants
- Devices run in the order of the requests and answer at once in the grid's virtual time, so a run is deterministic
  (I9). Worker processes run devices in parallel, and order, bytes and transcript stay the same.
- A message crosses as bytes, by Flower's own serialisation. The two sides share nothing that can be changed.
- Every message is in the transcript before it is delivered; so is everything a device leaves in Flower's context state.
- A device runs once, when its reply is pulled, with and without workers.

>>> with InProcessGrid({}) as grid:
...     list(grid.get_node_ids())
[]
"""

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from fedmem.device.simulation_log import SimulationLog
from fedmem.errors import UsageError
from fedmem.federation.clock import VirtualClock
from fedmem.federation.flower import (
    SUPERLINK_NODE_ID,
    ClientApp,
    Grid,
    Message,
    RecordDict,
    Run,
    TaskIdentity,
)
from fedmem.federation.payload import measure_payload
from fedmem.federation.transcript import Arrived, Transcript, serialise_content
from fedmem.sim.fleet import NODE_BASE, Answer, Content, Fleet, Request, parse_content
from fedmem.sim.workers import PATIENCE, Workers

__all__ = ["NODE_BASE", "InProcessGrid"]


def _identify(run_id: int) -> None:
    """Set the ids without which Flower builds no Message outside a task."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


class InProcessGrid(Grid):  # type: ignore[misc]  # mypy does not follow flwr
    """A federation on this machine whose devices are ClientApps, one app for each device index.

    Args:
        apps: the apps by device index.
        run_id: the id of Flower's run.
        config: the run config that every app gets.
        workers: the number of processes that the devices run in, forked with the first request; 0: all run in this one.
            A device stays in its process. It sees the state of this process at the time of the fork.
        simulation_log: collects the devices' notes for the runner of a simulation, from workers too.
        patience: seconds of real time that a worker may be silent over one device.

    Raises:
        UsageError: `workers` is negative, or the system cannot fork.

    Pulling raises `WorkerLost` where a worker died or stopped answering. The round stays open, so no update is left out
    unnoticed. `close`, or the end of the `with` block, ends the workers.
    """

    def __init__(
        self,
        apps: Mapping[int, ClientApp],
        *,
        run_id: int = 1,
        config: dict[str, Any] | None = None,
        workers: int = 0,
        simulation_log: SimulationLog | None = None,
        patience: float = PATIENCE,
    ) -> None:
        if workers < 0:
            raise UsageError("A federation has 0 or more worker processes.")
        _identify(run_id)
        self.transcript = Transcript()
        self.clock = VirtualClock()
        self._run = Run.create_empty(run_id)
        self._fleet = Fleet(apps, run_id, config)
        self._workers = Workers(self._fleet, workers, simulation_log, patience) if workers else None
        self._waiting: dict[str, Request] = {}
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to.

        Args:
            run: Flower's run.
        """
        self._run = run
        _identify(run.run_id)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

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
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all devices, ascending."""
        return self._fleet.nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept requests and return their ids; a device runs when its reply is pulled.

        Args:
            messages: the requests of a round.
        """
        ids, source, content = list[str](), None, Content(b"")
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"message-{self._sent}"
            if message.content is not source:  # serialise a content once for all its devices
                source, content = message.content, Content(serialise_content(message.content))
            self._waiting[message.metadata.message_id] = Request(message, content)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Run the devices of these requests, and yield their replies in the order in which the requests were pushed.

        Args:
            message_ids: ids that `push_messages` returned; unknown ones, and those pulled already, are left out.

        Raises:
            WorkerLost: a worker died or stopped answering.
            Refused: the grid has been closed.
        """
        requested_ids = set(message_ids)
        waiting_ids = [message_id for message_id in self._waiting if message_id in requested_ids]
        if self._workers:
            self._workers.ask([self._waiting[message_id] for message_id in waiting_ids])
        for message_id in waiting_ids:
            yield self._exchange(self._waiting.pop(message_id))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push the requests, then return every reply. In one process there is no timeout.

        Args:
            messages: the requests of a round.
            timeout: has no effect.
        """
        return list(self.pull_messages(self.push_messages(messages)))

    def _exchange(self, request: Request) -> Message:
        self.transcript.add("down", request.message, request.content.evidence)
        reply, payload, state = self._answer(request)
        reply.metadata.__dict__["_message_id"] = f"reply-{request.message.metadata.message_id}"
        received = measure_payload(payload)
        self.transcript.add("up", reply, received)
        # A SuperNode copies the context's state with each message, so its content has left the device too.
        if state:
            self.transcript.add("state", reply, measure_payload(state))
        return reply if reply.has_error() else Arrived(parse_content(payload), reply, received)

    def _answer(self, request: Request) -> Answer:
        return self._workers.wait_for_reply(request) if self._workers else self._fleet.answer(request)

    def close(self) -> None:
        """End the workers; without workers, or if closed already, do nothing."""
        if self._workers:
            self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
