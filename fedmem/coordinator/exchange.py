"""Exchange the messages of one round over Flower's Grid: send the request to the cohort, and check each reply alone.

Invariants
- The request is serialised once for the whole cohort. Replies are passed on one by one and are not kept.
- A reply is read only if it answers a request of this round and comes from the node that got this request.
- A reply costs at most the update of its own device. It is counted, or refused with a typed error and a log line. The
  line names the node and the reason, never the content.
- Waiting ends at the deadline of the round, by the given clock.
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
from fedmem.federation.transcript import Transcript, read_evidence
from fedmem.federation.wire import Fields

_log = logging.getLogger("fedmem.coordinator")
# With a poll of 0 a virtual clock would not move.
_SHORTEST_POLL = 1e-3


@dataclass(frozen=True)
class SentRequest:
    """The requests of one round.

    Attributes:
        run_id: id of Flower's run.
        group: number of the round, which is Flower's group id.
        nodes: id of each message, and the node that it was sent to.
    """

    run_id: int
    group: str
    nodes: Mapping[str, int]

    def is_answered_by(self, reply: Message) -> bool:
        """Return True if `reply` answers a request of this round and comes from the node that got this request.

        Args:
            reply: a message that Flower delivered; it may come from any node.
        """
        meta = reply.metadata
        is_from_its_node: bool = self.nodes.get(meta.reply_to_message_id) == meta.src_node_id
        return is_from_its_node and meta.group_id == self.group and meta.run_id == self.run_id


def exchange_messages(
    grid: Grid, coordinator: Coordinator, opened: Round, transcript: Transcript, clock: Clock, poll: float
) -> None:
    """Send the request of a round and count the replies, until all have arrived or the deadline has passed.

    Args:
        grid: Flower's grid.
        coordinator: the state machine that accepts or refuses each reply.
        opened: the round, as `coordinator` opened it.
        transcript: gets every message.
        clock: gives the time of the deadline.
        poll: seconds between two looks for replies; at least 0.001 is used.
    """
    sent = _send_requests(grid, opened, transcript)
    for reply in _pull_replies(grid, opened, sent, clock, max(poll, _SHORTEST_POLL)):
        transcript.add("up", reply, read_evidence(reply))
        _count_reply(coordinator, reply, sent, clock.now())


def _send_requests(grid: Grid, opened: Round, transcript: Transcript) -> SentRequest:
    """Push one message to each member of the cohort."""
    content, group = records.to_request(opened.request), str(opened.number)
    messages = [Message(content, node, wire.TRAIN_ANCHOR, group_id=group) for node in opened.cohort]
    if not messages:
        return SentRequest(0, group, {})
    evidence = read_evidence(messages[0])
    for message in messages:
        transcript.add("down", message, evidence)
    ids = grid.push_messages(messages)
    return SentRequest(messages[0].metadata.run_id, group, dict(zip(ids, opened.cohort, strict=True)))


def _pull_replies(grid: Grid, opened: Round, sent: SentRequest, clock: Clock, poll: float) -> Iterator[Message]:
    waiting = set(sent.nodes)
    while waiting and clock.now() <= opened.deadline:
        for reply in grid.pull_messages(sorted(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply
        if waiting:
            clock.sleep(poll)


def _count_reply(coordinator: Coordinator, reply: Message, sent: SentRequest, now: float) -> None:
    """Count one reply, or log why it is refused. A device that lies or fails costs its own update only."""
    node = reply.metadata.src_node_id
    try:
        coordinator.accept(node, int(sent.group), _read_fields(reply, sent), now)
    except FedmemError as error:
        _log.warning("Node %s: %s", node, error)


def _read_fields(reply: Message, sent: SentRequest) -> Fields:
    if not sent.is_answered_by(reply):
        raise RemoteError("A message answers no request of this round; it was not counted.")
    if reply.has_error() or reply.metadata.message_type != wire.TRAIN_ANCHOR:
        raise RemoteError("A device answered with an error or with another message type; it was not counted.")
    try:
        return records.from_reply(reply.content)
    except FedmemError:
        raise
    except Exception as error:  # noqa: BLE001  (a device that lies costs its own update only)
        # Nothing is added yet, so an error that a crafted record causes in a parser has no effect.
        raise RemoteError(f"A reply could not be read ({type(error).__name__}); it was not counted.") from None
