"""Fetch the replies of a round from a SuperLink, each within the size that its schema allows.

Flower's own `HttpGrid.pull_messages` fetches whatever a device has pushed, of any size, and waits up to two hours for a
part that a device never pushes. If one reply cannot be built, it loses all of the call. So the parts are fetched here.

Invariants
- A part is refused by the length in its HTTP head, before it is read. All parts of a reply together are at most the
  schema's bytes and a public allowance for heads; chunks that an array names twice count twice.
- A part that is not there yet is asked for again at the next call. It holds up no other reply.
- A reply that cannot be built becomes an error message of its node. It costs that node's update only.
- The metadata of a message are those that the SuperLink has checked, not those that a device wrote into the reply.

    replies = SuperLinkReplies(grid, coordinator.reply_schema)
    for message in replies.pull(message_ids): ...
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from fedmem.errors import BoundaryViolation
from fedmem.federation import flower
from fedmem.federation.flower import Error, ErrorCode, HttpGrid, Message
from fedmem.federation.wire import Schema

_HEADS = 1 << 16  # bytes that the heads of a reply may have beside those of its arrays
_ARRAY_HEAD = 1 << 11  # bytes that the heads of one array may have, its name not counted
_PATH = "/pull-object"


@dataclass
class _Claimed:
    """A reply that the SuperLink has handed over, while its parts arrive.

    Attributes:
        message_id: id of the reply.
        metadata: its metadata, as the SuperLink has checked them.
        missing: ids of the parts that are still to be fetched.
        parts: content of each part by its id.
        nbytes: bytes of all parts so far.
    """

    message_id: str
    metadata: Any
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    nbytes: int = 0


class SuperLinkReplies:
    """The replies of one round on a SuperLink.

    Args:
        grid: Flower's grid, connected to the SuperLink.
        schema: the schema of every reply; it bounds what is fetched.
    """

    def __init__(self, grid: HttpGrid, schema: Schema) -> None:
        self._grid, self._client = grid, grid._runtime_client
        self._heads = _HEADS + sum(_ARRAY_HEAD + 8 * len(name) for name in schema.arrays)
        self._limit = schema.nbytes + self._heads
        self._claimed: dict[str, _Claimed] = {}

    def pull(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Return the replies that are whole by now, and an error message for each that cannot be built.

        Args:
            message_ids: ids of the requests that are not answered yet.

        Raises:
            Exception: as Flower's client raises it; call again later.
        """
        self._claim([message_id for message_id in message_ids if message_id not in self._claimed])
        for request_id in [name for name in self._claimed if name in set(message_ids)]:
            if (reply := self._build(self._claimed[request_id])) is not None:
                del self._claimed[request_id]
                yield reply

    def _claim(self, message_ids: list[str]) -> None:
        if not message_ids:
            return
        response = self._client.PullMessages(flower.PullAppMessagesRequest(message_ids=message_ids))
        for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            metadata = flower.metadata_from_proto(head.metadata)
            ids = list(dict.fromkeys(node.object_id for node in flower.iterate_object_tree(tree)))
            self._claimed[metadata.reply_to_message_id] = _Claimed(head.metadata.message_id, metadata, ids)

    def _build(self, claimed: _Claimed) -> Message | None:
        try:
            self._fetch(claimed)
            content = self._inflate(claimed)
        except flower.ObjectUnavailableError:
            return None
        except flower.HTTPError:
            raise
        except Exception:  # noqa: BLE001  (a crafted part may break any parser)
            return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, ""), metadata=claimed.metadata)
        return content

    def _fetch(self, claimed: _Claimed) -> None:
        """Fetch the missing parts, and stop at the first that is not there or is too large."""
        pull = flower.make_pull_object_fn_protobuf(self._pull_object, self._grid.node, self._grid.run.run_id)
        while claimed.missing:
            part = pull(claimed.missing[0])
            claimed.nbytes += len(part)
            if claimed.nbytes > self._limit:
                raise BoundaryViolation("A reply is larger than its schema; it was not read.")
            claimed.parts[claimed.missing.pop(0)] = part

    def _pull_object(self, request: Any) -> Any:
        hooks = self._client._client.event_hooks
        self._client._client.event_hooks = {**hooks, "response": [*hooks["response"], self._check_length]}
        try:
            return self._client.PullObject(request)
        finally:
            self._client._client.event_hooks = hooks

    def _check_length(self, response: Any) -> None:
        if int(response.headers.get("content-length", 0)) > self._limit + _HEADS:
            raise BoundaryViolation("A part of a reply is larger than its schema; it was not read.")

    def _inflate(self, claimed: _Claimed) -> Message:
        self._check_parts(claimed.parts)
        self._client.ConfirmMessageReceived(
            flower.ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=claimed.message_id
            )
        )
        message = cast(Message, flower.inflate_object_from_contents(claimed.message_id, claimed.parts))
        if message.has_error():
            return Message(Error(ErrorCode.UNKNOWN, ""), metadata=claimed.metadata)
        return Message(message.content, metadata=claimed.metadata)

    def _check_parts(self, parts: dict[str, bytes]) -> None:
        """Raise BoundaryViolation if heads are too large, or if arrays name chunks so often that their data are."""
        heads = data = 0
        for part in parts.values():
            kind, children, _ = flower.get_object_head_values_from_object_content(part)
            heads += 0 if kind == "ArrayChunk" else len(part)
            if heads > self._heads:
                raise BoundaryViolation("The heads of a reply are larger than its schema needs; it was not read.")
            if kind == "Array":
                indices = json.loads(flower.get_object_body(part, flower.Array))["arraychunk_ids"]
                data += sum(len(parts[children[index]]) for index in indices)
        if data > self._limit:
            raise BoundaryViolation("The arrays of a reply are larger than its schema; it was not read.")
