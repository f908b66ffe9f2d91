"""Exchange the messages of one round over Flower's Grid: send the request to the cohort, and check each reply alone.

Invariants
- The request is serialised once for the whole cohort. Replies are passed on one by one and are not kept.
- A reply is read only if it answers a request of this round and comes from the node that got this request. Its
  template is compared with the schema before a byte of its arrays is read, copied or hashed.
- A reply costs at most the update of its own device. It is counted, or refused with a log line. The line names the node
  and the reason, never the content. No exception of a reply leaves this module.
- A failing Grid is asked again until the deadline of the round, by the given clock. Waiting ends there.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from fedmem.coordinator.mismatch import ReplyOutcome
from fedmem.coordinator.retry import FIRST_PAUSE, LONGEST_PAUSE, retry_until
from fedmem.coordinator.superlink_replies import SuperLinkReplies
from fedmem.errors import FedmemError, RemoteError, VersionMismatch
from fedmem.federation import flower_codec as records
from fedmem.federation import wire
from fedmem.federation.clock import Clock
from fedmem.federation.flower import Grid, HttpGrid, Message
from fedmem.federation.rounds import Coordinator, Round
from fedmem.federation.transcript import Transcript, clean_number, estimate_evidence, read_evidence
from fedmem.federation.wire import Fields, Schema

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
        meta, request_id = reply.metadata, self.request_id(reply)
        is_from_its_node: bool = bool(request_id) and self.nodes[request_id] == meta.src_node_id
        return is_from_its_node and meta.group_id == self.group and meta.run_id == self.run_id

    def request_id(self, reply: Message) -> str:
        """Return the id of the request that `reply` names; "" where it is none of this round.

        Args:
            reply: a message that Flower delivered; it may come from any node.
        """
        name = reply.metadata.reply_to_message_id
        return name if isinstance(name, str) and name in self.nodes else ""


def exchange_messages(
    grid: Grid, coordinator: Coordinator, opened: Round, transcript: Transcript, clock: Clock, poll: float
) -> dict[int, ReplyOutcome]:
    """Send the request of a round and count the replies, until all have arrived or the deadline has passed.

    Args:
        grid: Flower's grid.
        coordinator: the state machine that accepts or refuses each reply.
        opened: the round, as `coordinator` opened it.
        transcript: gets every message.
        clock: gives the time of the deadline.
        poll: seconds between two looks for replies; at least 0.001 is used.

    Returns:
        Node id -> outcome of its first reply, for each node that answered.

    Raises:
        RemoteError: Flower took no request before the deadline. The round is open, and nothing was counted.
    """
    sent = _send_requests(grid, opened, transcript, clock)
    outcomes: dict[int, ReplyOutcome] = {}
    is_remote = isinstance(grid, HttpGrid)
    pull = SuperLinkReplies(grid, coordinator.reply_schema).pull if is_remote else grid.pull_messages
    for reply in _pull_replies(pull, opened.deadline, sent, clock, max(poll, _SHORTEST_POLL)):
        node, outcome = _count_reply(coordinator, reply, sent, transcript, clock.now())
        if node is not None:
            outcomes.setdefault(node, outcome)
    return outcomes


def _send_requests(grid: Grid, opened: Round, transcript: Transcript, clock: Clock) -> SentRequest:
    """Push one message to each member of the cohort."""
    content, group = records.to_request(opened.request), str(opened.number)
    if not opened.cohort:
        return SentRequest(0, group, {})

    def push() -> tuple[list[Message], list[str]]:
        # New messages for each try: Flower refuses an id that it has seen.
        messages = [Message(content, node, wire.TRAIN_ANCHOR, group_id=group) for node in opened.cohort]
        return messages, _check_ids(list(grid.push_messages(messages)), len(messages))

    messages, ids = retry_until(push, clock, opened.deadline, "taking the requests of a round")
    evidence = read_evidence(messages[0])
    for message in messages:
        transcript.add("down", message, evidence)
    nodes = {message_id: node for message_id, node in zip(ids, opened.cohort, strict=True) if message_id}
    return SentRequest(messages[0].metadata.run_id, group, nodes)


def _check_ids(ids: list[str], count: int) -> list[str]:
    # Flower gives no ids at all where it refuses a push, and None for a node that has gone: that one is silent.
    if len(ids) != count:
        raise ConnectionError("Flower did not take the requests.")
    return ids


def _pull_replies(
    pull: Callable[[list[str]], Iterable[Message]], deadline: float, sent: SentRequest, clock: Clock, poll: float
) -> Iterator[Message]:
    """Return the replies as they arrive. A foreign answer to a request is returned once, and the wait goes on."""
    waiting, forged, pause = set(sent.nodes), set[str](), FIRST_PAUSE
    while waiting and clock.now() <= deadline:
        try:
            for reply in pull(sorted(waiting)):
                request_id, is_answer = sent.request_id(reply), sent.is_answered_by(reply)
                if is_answer or request_id not in forged:
                    yield reply
                (waiting.discard if is_answer else forged.add)(request_id)
            pause = FIRST_PAUSE
        except FedmemError:
            raise
        except Exception as error:  # noqa: BLE001  (Flower, gRPC and HTTP have no common class of errors)
            _log.warning("Flower failed at giving replies (%s); trying again.", type(error).__name__)
            clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            continue
        if waiting:
            clock.sleep(poll)


def _count_reply(
    coordinator: Coordinator, reply: Message, sent: SentRequest, transcript: Transcript, now: float
) -> tuple[int | None, ReplyOutcome]:
    """Count one reply, or log why it is refused; return its node (None for no node of the cohort) and its outcome."""
    node = reply.metadata.src_node_id if sent.is_answered_by(reply) else None
    evidence, outcome = estimate_evidence(reply), ReplyOutcome.REFUSED
    try:
        fields = _read_fields(reply, sent, coordinator.reply_schema)
        evidence = read_evidence(reply)
        moves = coordinator.accept(reply.metadata.src_node_id, int(sent.group), fields, now)
        outcome = ReplyOutcome.MOVES if moves else ReplyOutcome.ZEROS
    except FedmemError as error:
        _log.warning("Node %s: %s", clean_number(reply.metadata.src_node_id), error)
        outcome = _outcome_of(error)
    except Exception as error:  # noqa: BLE001  (a device that lies costs its own update only)
        # Nothing is added yet, so an error that a crafted record causes has no effect.
        name = type(error).__name__
        _log.warning("Node %s: a reply could not be read (%s).", clean_number(reply.metadata.src_node_id), name)
    transcript.add("up", reply, evidence)
    return node, outcome


def _outcome_of(error: FedmemError) -> ReplyOutcome:
    if isinstance(error, VersionMismatch):
        return ReplyOutcome.OTHER_PROTOCOL
    return ReplyOutcome.OTHER_RELEASE if isinstance(error, records.TemplateMismatch) else ReplyOutcome.REFUSED


def _read_fields(reply: Message, sent: SentRequest, schema: Schema) -> Fields:
    if not sent.is_answered_by(reply):
        raise RemoteError("A message answers no request of this round; it was not counted.")
    if reply.has_error() or reply.metadata.message_type != wire.TRAIN_ANCHOR:
        raise RemoteError("A device answered with an error or with another message type; it was not counted.")
    return records.from_reply(reply.content, schema)
