"""Replies from a SuperLink: part by part, within the schema's size, and none holds up or costs another."""

import json
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_tree,
)

from fedmem.coordinator.superlink_replies import SuperLinkReplies
from fedmem.federation import flower_codec as records
from fedmem.federation import wire
from fedmem.federation.flower import Array, ArrayRecord, Error, Message, RecordDict
from fedmem.federation.wire import Fields
from fedmem.sim.inproc_grid import InProcessGrid

SHAPES = {"b": (3,), "w": (4, 3)}
SCHEMA = wire.anchor_reply(SHAPES, clip=1.0)
UPDATE = Fields({"b": np.array([1, -2, 3], np.int32), "w": np.full((4, 3), 5, np.int32)})


class Link:
    """A SuperLink behind Flower's HTTP client: it hands each reply over once, and its parts by id."""

    def __init__(self) -> None:
        InProcessGrid({})
        self.replies: dict[str, Message] = {}
        self.parts: dict[str, bytes] = {}
        self.trees: dict[str, ObjectTree] = {}
        self.unavailable: set[str] = set()
        self.failing = False
        self.read = 0
        self.confirmed: list[str] = []
        self._client = SimpleNamespace(event_hooks={"request": [], "response": []})
        self.node, self.run, self._runtime_client = None, SimpleNamespace(run_id=1), self

    def add(self, request_id: str, content: RecordDict | Error) -> Message:
        request = Message(RecordDict(), 1000, wire.TRAIN_ANCHOR, group_id="1")
        request.metadata.__dict__["_message_id"] = request_id
        reply = Message(content, reply_to=request)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        self.parts |= {name: thing.deflate() for name, thing in objects.items()}
        self.trees[request_id], self.replies[request_id] = get_object_tree(reply), reply
        return reply

    def PullMessages(self, request: Any) -> Any:
        ids = [name for name in request.message_ids if name in self.replies]
        heads = [message_to_proto(Message(RecordDict(), metadata=self.replies.pop(name).metadata)) for name in ids]
        return SimpleNamespace(messages_list=heads, message_object_trees=[self.trees[name] for name in ids])

    def PullObject(self, request: Any) -> PullObjectResponse:
        if self.failing:
            raise httpx.ConnectError("the SuperLink restarts")
        part = self.parts[request.object_id]
        for hook in self._client.event_hooks["response"]:
            hook(httpx.Response(200, headers={"content-length": str(len(part))}))
        self.read += len(part)
        is_here = request.object_id not in self.unavailable
        return PullObjectResponse(object_found=True, object_available=is_here, object_content=part if is_here else b"")

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link() -> Link:
    return Link()


def replies_of(link: Link) -> SuperLinkReplies:
    return SuperLinkReplies(link, SCHEMA)


def content(**arrays: Array) -> RecordDict:
    return RecordDict({"update": ArrayRecord({**dict(records.to_reply(UPDATE)["update"].items()), **arrays})})


def test_an_honest_reply_arrives_whole_and_is_confirmed(link: Link) -> None:
    sent = link.add("request-1", records.to_reply(UPDATE))
    (reply,) = replies_of(link).pull(["request-1", "request-2"])
    assert records.from_reply(reply.content, SCHEMA).digest() == UPDATE.digest()
    assert reply.metadata.reply_to_message_id == "request-1"
    assert link.confirmed == [sent.object_id]
    assert link._client.event_hooks == {"request": [], "response": []}


def test_a_large_part_is_refused_by_its_head_and_costs_no_other_reply(link: Link) -> None:
    link.add("request-1", content(b=Array("int32", (3,), records.STYPE, bytes(4 << 20))))
    link.add("request-2", records.to_reply(UPDATE))
    first, second = replies_of(link).pull(["request-1", "request-2"])
    assert first.has_error()
    assert first.metadata.reply_to_message_id == "request-1"
    assert second.has_content()
    assert link.read < 1 << 17


def test_many_parts_are_refused_together(link: Link) -> None:
    link.add("request-1", content(**{f"x{n}": Array("int32", (1,), "s", n.to_bytes(4, "big")) for n in range(2000)}))
    (reply,) = replies_of(link).pull(["request-1"])
    assert reply.has_error()
    assert link.read < 1 << 18


def test_a_chunk_that_is_named_again_and_again_is_not_multiplied(link: Link) -> None:
    """1,000 names of one chunk of 40 kB would become 40 MB."""
    link.add("request-1", content(b=Array("int32", (3,), records.STYPE, bytes(40_000))))
    for name, part in link.parts.items():
        if part.startswith(b"Array ") and b'"shape": [3]' in part:
            body = json.loads(get_object_body(part, Array))
            crafted = json.dumps({**body, "arraychunk_ids": [0] * 1000}).encode()
            head = part[: part.index(b"\0") + 1].decode()
            link.parts[name] = head.rsplit(" ", 1)[0].encode() + f" {len(crafted)}\0".encode() + crafted
    (reply,) = replies_of(link).pull(["request-1"])
    assert reply.has_error()


@pytest.mark.parametrize("part", [b"", b"\0", b"Array\0", b"Array  9\0x", b"\xff" * 99, b"Unknown  0\0"])
def test_parts_that_no_parser_reads_become_an_error_of_their_node(link: Link, part: bytes) -> None:
    link.add("request-1", records.to_reply(UPDATE))
    link.parts = dict.fromkeys(link.parts, part)
    (reply,) = replies_of(link).pull(["request-1"])
    assert reply.has_error()
    assert reply.metadata.src_node_id == 1000


def test_a_part_that_is_not_there_yet_holds_up_no_other_reply(link: Link) -> None:
    late = link.add("request-1", records.to_reply(UPDATE))
    link.unavailable = {late.object_id}
    link.add("request-2", records.to_reply(Fields({"b": np.zeros(3, np.int32), "w": np.ones((4, 3), np.int32)})))
    replies, ids = replies_of(link), ["request-1", "request-2"]
    assert [reply.metadata.reply_to_message_id for reply in replies.pull(ids)] == ["request-2"]
    link.unavailable = set()
    assert [reply.metadata.reply_to_message_id for reply in replies.pull(ids)] == ["request-1"]


def test_a_superlink_that_fails_is_asked_again_and_nothing_is_lost(link: Link) -> None:
    link.add("request-1", records.to_reply(UPDATE))
    replies, link.failing = replies_of(link), True
    with pytest.raises(httpx.ConnectError):
        list(replies.pull(["request-1"]))
    link.failing = False
    assert [reply.has_content() for reply in replies.pull(["request-1"])] == [True]


def test_an_error_of_a_device_arrives_without_its_text(link: Link) -> None:
    link.add("request-1", Error(1, "a diagnosis"))
    (reply,) = replies_of(link).pull(["request-1"])
    assert reply.has_error()
    assert "diagnosis" not in str(reply.error)
