"""Flower's `Grid` in one process: real ClientApps and Messages, no Ray, no socket (DESIGN §10).

Invariants
- Devices run one after the other in the order of the requests, and answer at once in the grid's virtual time, so a run
  is deterministic (I9).
- A message crosses as bytes, by Flower's own serialisation: the two sides share nothing that can be changed. A request
  to many devices is serialised and parsed once, and each of them gets a copy of its own.
- Whatever crosses is in the transcript first; so is anything a device leaves in Flower's context state.
- An exception in a ClientApp becomes an error reply with its text, as Flower does it: nothing is hidden.

>>> grid = InProcessGrid({})
>>> list(grid.get_node_ids())
[]
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any

from fedmem.federation.clock import VirtualClock
from fedmem.federation.flower import (
    SUPERLINK_NODE_ID,
    Array,
    ClientApp,
    Context,
    Error,
    ErrorCode,
    Grid,
    Message,
    ProtoRecordDict,
    RecordDict,
    Run,
    TaskIdentity,
    recorddict_from_proto,
)
from fedmem.federation.transcript import Arrived, Transcript, encode, evidence, payload

NODE_BASE = 1000
"""Node ids of simulated devices are NODE_BASE + index."""


def _identify(run_id: int) -> None:
    """Flower refuses to build a Message outside a task until these are set."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


class InProcessGrid(Grid):  # type: ignore[misc]  # mypy does not follow flwr
    """A federation whose devices are ClientApps of this process, one app by device index."""

    def __init__(self, apps: Mapping[int, ClientApp], *, run_id: int = 1, config: dict[str, Any] | None = None):
        _identify(run_id)
        self.transcript = Transcript()
        self.clock = VirtualClock()
        self._run = Run.create_empty(run_id)
        self._apps = {NODE_BASE + index: app for index, app in sorted(apps.items())}
        self._contexts = {node: self._context(node, config or {}) for node in self._apps}
        self._waiting: dict[str, tuple[Message, _Parsed]] = {}
        self._sent = 0

    def _context(self, node: int, config: dict[str, Any]) -> Context:
        place = {"partition-id": node - NODE_BASE, "num-partitions": len(self._apps)}
        return Context(self._run.run_id, node, place, RecordDict(), dict(config))

    def set_run(self, run: Run) -> None:
        """Work under another run id."""
        self._run = run
        _identify(run.run_id)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message from the coordinator."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all devices, ascending."""
        return sorted(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept requests; a device runs when its reply is pulled."""
        ids, last = [], _Parsed(RecordDict())
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"message-{self._sent}"
            # The same content object to the next device, so the same bytes.
            last = last if message.content is last.content else _Parsed(message.content)
            self._waiting[message.metadata.message_id] = message, last
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Run the devices asked for, one at a time, in the order they were pushed."""
        wanted = set(message_ids)
        for message_id in [waiting for waiting in self._waiting if waiting in wanted]:
            yield self._exchange(*self._waiting.pop(message_id))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull every reply. In one process nothing times out."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _exchange(self, request: Message, parsed: "_Parsed") -> Message:
        node, context = request.metadata.dst_node_id, self._contexts[request.metadata.dst_node_id]
        self.transcript.add("down", request, parsed.evidence)
        received = Message(parsed.copy(), metadata=request.metadata)
        try:
            reply = self._apps[node](received, context)
        except Exception as error:  # noqa: BLE001  (Flower itself catches whatever an app raises)
            text = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=received)
        reply.metadata.__dict__["_message_id"] = f"reply-{request.metadata.message_id}"
        data = payload(reply)
        found = evidence(data)
        self.transcript.add("up", reply, found)
        # A SuperNode copies the context's state with each message, so what lies in it has left the device too.
        if context.state:
            self.transcript.add("state", reply, evidence(encode(context.state)))
        return reply if reply.has_error() else Arrived(_parse(data), reply, found)


class _Parsed:
    """One content as it comes out of its bytes, to be copied for each device that it is sent to."""

    def __init__(self, content: RecordDict) -> None:
        self.content = content
        data = encode(content)
        self.evidence, self._parsed = evidence(data), _parse(data)

    def copy(self) -> RecordDict:
        """Records and arrays of its own; only text, numbers and bytes are shared, which nobody can change."""
        twin = self._parsed.copy()
        for name, record in self._parsed.items():
            twin[name] = own = record.copy()
            for key, value in record.items():
                if isinstance(value, (Array, list)):
                    own[key] = copy(value)
        return twin


def _parse(data: bytes) -> RecordDict:
    return recorddict_from_proto(ProtoRecordDict.FromString(data))
