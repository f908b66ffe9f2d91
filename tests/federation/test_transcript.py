"""A transcript covers the bytes of each message, and nothing of clocks, ids or the order of arrival."""

import hashlib

import numpy as np
import pytest

from fedmem.federation import flower_codec as records
from fedmem.federation.flower import Error, Message
from fedmem.federation.transcript import (
    Arrived,
    Evidence,
    Transcript,
    measure_payload,
    read_evidence,
    serialise_content,
    serialise_payload,
)
from fedmem.federation.wire import Fields
from fedmem.sim.inproc_grid import InProcessGrid


@pytest.fixture(autouse=True)
def grid() -> InProcessGrid:
    """A grid sets the ids without which Flower builds no message."""
    return InProcessGrid({})


def message(cell: int = 0, node: int = 1000, group: str = "1", **options: float) -> Message:
    content = records.to_reply(Fields({"w": np.array([cell, 1], np.int32)}))
    return Message(content, node, "train.anchor", group_id=group, **options)


def filled(*messages: Message) -> Transcript:
    log = Transcript()
    for one in messages:
        log.add("down", one, read_evidence(one))
    return log


def test_evidence_is_size_and_sha256_of_the_bytes() -> None:
    assert measure_payload(b"abc") == Evidence(3, hashlib.sha256(b"abc").hexdigest())
    data = serialise_content(message().content)
    assert read_evidence(message()) == measure_payload(data)
    assert serialise_payload(message()) == data


def test_the_order_of_messages_and_their_clock_change_no_digest() -> None:
    first, second, slow = message(1), message(2, 1001), message(2, 1001, ttl=7.0)
    assert filled(first, second).digest() == filled(slow, first).digest()


@pytest.mark.parametrize("other", [{"cell": 3}, {"node": 1002}, {"group": "2"}])
def test_another_content_device_or_round_changes_the_digest(other: dict) -> None:
    assert filled(message(1)).digest() != filled(message(**{"cell": 1, **other})).digest()


def test_a_message_that_came_twice_is_entered_twice() -> None:
    assert filled(message(1), message(1)).digest() != filled(message(1)).digest()


def test_an_error_is_entered_with_its_text() -> None:
    request = message()
    errors = [Message(Error(1, text), reply_to=request) for text in ("out of memory", "a diagnosis")]
    log, other = Transcript(), Transcript()
    for transcript, error in zip((log, other), errors, strict=True):
        transcript.add("up", error, read_evidence(error))
    assert log.entries[0].message == "train.anchor error"
    assert log.digest() != other.digest()


def test_traffic_is_counted_by_round_and_direction() -> None:
    log = filled(message(), message(group="2"))
    reply = Message(message().content, reply_to=message())
    log.add("up", reply, Evidence(5, ""))
    log.add("state", reply, Evidence(2, ""))
    size = read_evidence(message()).nbytes
    assert (log.traffic("1"), log.traffic("2"), log.traffic("3")) == ((size, 7), (size, 0), (0, 0))
    assert log.digest("1") != log.digest("2") != log.digest()


def test_a_message_that_arrived_keeps_the_evidence_of_its_bytes() -> None:
    proof = Evidence(99, "0" * 64)
    assert read_evidence(Arrived(message().content, message(), proof)) == proof
