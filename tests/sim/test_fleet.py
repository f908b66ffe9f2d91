"""Devices get copies of one content, and an exception becomes an error reply."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedmem.federation import wire
from fedmem.federation.flower import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from fedmem.federation.transcript import serialise_content
from fedmem.sim.fleet import Content, Fleet, Request, parse_content
from fedmem.sim.inproc_grid import NODE_BASE, InProcessGrid
from tests.federation.conftest import Toy
from tests.sim.processes import echo

Make = Callable[..., Toy]


def refuse(message: Message, context: Context) -> RecordDict:
    raise RuntimeError(f"device {context.node_config['partition-id']} would not")


def count_up(message: Message, context: Context) -> RecordDict:
    before = context.state["seen"]["times"] if "seen" in context.state else 0
    context.state["seen"] = ConfigRecord({"times": int(before) + 1})
    return RecordDict({})


def spoil(message: Message, context: Context) -> RecordDict:
    """Change the request in place, which the next device must not see."""
    seen = len(message.content["notes"])
    message.content["notes"][f"by {context.node_id}"] = "was here"
    return RecordDict({"seen": ConfigRecord({"notes": seen})})


@pytest.mark.parametrize("act", [refuse, count_up, spoil])
def test_errors_contexts_and_copies_are_as_in_one_process(toy: Make, act: Any) -> None:
    seen = []
    for count in (0, 2):
        with InProcessGrid(dict.fromkeys(range(5), echo(act)), workers=count) as grid:
            for group in ("1", "2"):
                content = RecordDict({"notes": ConfigRecord({"text": "the same for all"})})
                asked = [Message(content, NODE_BASE + i, wire.TRAIN_ANCHOR, group_id=group) for i in range(5)]
                replies = grid.send_and_receive(asked)
            seen.append((grid.transcript.entries, [reply.has_error() for reply in replies]))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == (30 if act is count_up else 20)


def content_of(*notes: int) -> Content:
    arrays = ArrayRecord({"w": Array(np.arange(3, dtype=np.float32))})
    return Content(serialise_content(RecordDict({"arrays": arrays, "notes": ConfigRecord({"numbers": list(notes)})})))


def test_a_copy_can_be_changed_without_another_copy() -> None:
    content = content_of(1, 2)
    first, second = content.copy(), content.copy()
    first["notes"]["numbers"].append(3)
    first["arrays"]["w"].data = b""
    del first["arrays"]
    assert second["notes"]["numbers"] == [1, 2]
    assert serialise_content(second) == content.data == serialise_content(content.copy())
    assert content.evidence.nbytes == len(content.data)


def request(fleet: Fleet, index: int) -> Request:
    return Request(Message(RecordDict(), fleet.nodes[index], wire.TRAIN_ANCHOR), content_of(7))


def test_the_text_of_an_exception_is_in_the_error_as_in_flower() -> None:
    InProcessGrid({})  # sets the ids without which Flower builds no message
    fleet = Fleet({0: echo(refuse)})
    answer = fleet.answer(request(fleet, 0))
    assert answer.reply.has_error()
    assert "device 0 would not" in answer.reply.error.reason
    assert b"would not" in answer.payload


def test_a_context_is_of_its_device_alone_and_is_kept_between_rounds() -> None:
    InProcessGrid({})
    fleet = Fleet(dict.fromkeys((1, 0), echo(count_up)))
    assert fleet.nodes == [NODE_BASE, NODE_BASE + 1]
    states = [parse_content(fleet.answer(request(fleet, index)).state)["seen"]["times"] for index in (0, 0, 1)]
    assert states == [1, 2, 1]


def test_an_app_gets_its_place_and_the_run_config() -> None:
    InProcessGrid({})
    seen = []
    app = echo(lambda message, context: seen.append((context.node_config, context.run_config)) or RecordDict())
    fleet = Fleet({0: app, 1: app}, run_id=3, config={"rounds": 2})
    assert fleet.answer(request(fleet, 1)).state == b""
    assert seen == [({"partition-id": 1, "num-partitions": 2}, {"rounds": 2})]
