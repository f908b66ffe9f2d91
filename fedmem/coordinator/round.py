"""One round's messages over Flower's Grid: the request out to the cohort, replies in as they come, each judged alone.

Invariants
- The request is serialised once, whatever the cohort; replies are handed on one by one and not kept.
- A reply is looked at only if it answers a request of this very round and comes from the node that was asked.
- Whatever a reply is, it costs its own device's update at most: it is counted, or refused with a typed error and a log
  line that names the node and the reason, never the content.
- Waiting ends at the round's deadline, by the clock that is given.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedmem.errors import FedmemError, RemoteError
from fedmem.federation import flower_codec as records
from fedmem.federation import wire
from fedmem.federation.clock import Clock
from fedmem.federation.flower import Grid, Message
from fedmem.federation.rounds import Coordinator, Round
from fedmem.federation.transcript import Transcript, evidence_of
from fedmem.federation.wire import Fields

_log = logging.getLogger("fedmem.coordinator")
# A poll of 0 would not let a virtual clock move.
_SHORTEST_POLL = 1e-3


@dataclass(frozen=True)
class SentRequest:
    """The requests of one round: Flower's run, the round, and the node behind each message id."""

    run_id: int
    group: str
    nodes: Mapping[str, int]

    def answered_by(self, reply: Message) -> bool:
        """Whether `reply` is from a node that was asked, about what it was asked."""
        meta = reply.metadata
        known: bool = self.nodes.get(meta.reply_to_message_id) == meta.src_node_id
        return known and meta.group_id == self.group and meta.run_id == self.run_id


def run(grid: Grid, coordinator: Coordinator, opened: Round, log: Transcript, clock: Clock, poll: float) -> None:
    """Send the round's request and count the replies, until all came or time is up."""
    sent = _send(grid, opened, log)
    for reply in _replies(grid, opened, sent, clock, max(poll, _SHORTEST_POLL)):
        log.add("up", reply, evidence_of(reply))
        count(coordinator, reply, sent, clock.now())


def _send(grid: Grid, opened: Round, log: Transcript) -> SentRequest:
    """Push one message to each member."""
    content, group = records.to_request(opened.request), str(opened.number)
    messages = [Message(content, node, wire.TRAIN_ANCHOR, group_id=group) for node in opened.cohort]
    if not messages:
        return SentRequest(0, group, {})
    found = evidence_of(messages[0])
    for message in messages:
        log.add("down", message, found)
    ids = grid.push_messages(messages)
    return SentRequest(messages[0].metadata.run_id, group, dict(zip(ids, opened.cohort, strict=True)))


def _replies(grid: Grid, opened: Round, sent: SentRequest, clock: Clock, poll: float) -> Iterator[Message]:
    waiting = set(sent.nodes)
    while waiting and clock.now() <= opened.deadline:
        for reply in grid.pull_messages(sorted(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if waiting:
            clock.sleep(poll)


def count(coordinator: Coordinator, reply: Message, sent: SentRequest, now: float) -> None:
    """Count one reply, or leave it out: a device that lies or fails costs its own update only."""
    node = reply.metadata.src_node_id
    try:
        coordinator.accept(node, int(sent.group), _fields(reply, sent), now)
    except FedmemError as error:
        _log.warning("Node %s: %s", node, error)


def _fields(reply: Message, sent: SentRequest) -> Fields:
    if not sent.answered_by(reply):
        raise RemoteError("A message answers no request of this round; it was not counted.")
    if reply.has_error() or reply.metadata.message_type != wire.TRAIN_ANCHOR:
        raise RemoteError("A device answered with an error or with another message type; it was not counted.")
    try:
        return records.from_reply(reply.content)
    except FedmemError:
        raise
    except Exception as error:  # noqa: BLE001  (a device that lies costs its own update only)
        # Nothing was added yet, so whatever a crafted record does to a parser ends here.
        raise RemoteError(f"A reply could not be read ({type(error).__name__}); it was not counted.") from None
