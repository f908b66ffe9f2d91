"""One round over a grid: the request once, each reply alone, and an end at the deadline."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedmem.coordinator.exchange import exchange_messages
from fedmem.federation import flower_codec as records
from fedmem.federation import wire
from fedmem.federation.clock import VirtualClock
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import Error, Message
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.federation.transcript import Transcript
from fedmem.federation.wire import Fields
from fedmem.sim.inproc_grid import InProcessGrid

PLAN = DevicePlan(population=3, unsafe_no_dp=True, unsafe_reason="a test")
NODES = [1000, 1001, 1002]


class Pipe:
    """A grid that answers each request by `answers[node]`; a node without one is silent."""

    def __init__(self, answers: dict[int, Any]) -> None:
        self.answers, self.pushed, self.pulls = answers, list[Message](), 0

    def push_messages(self, messages: list[Message]) -> list[str]:
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"m{number}"
        self.pushed += messages
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, ids: list[str]) -> Iterator[Message]:
        self.pulls += 1
        for message in self.pushed:
            answer = self.answers.get(message.metadata.dst_node_id)
            if answer and message.metadata.message_id in ids:
                yield answer(message)


def update(cell: int = 1) -> Fields:
    return Fields({"w": np.array([cell, 0], np.int32)})


def honest(message: Message) -> Message:
    return Message(records.to_reply(update()), reply_to=message)


def failed(message: Message) -> Message:
    return Message(Error(1, "a diagnosis"), reply_to=message)


def from_elsewhere(message: Message) -> Message:
    reply = honest(message)
    reply.metadata.__dict__["_src_node_id"] = 1001
    return reply


def of_another_round(message: Message) -> Message:
    reply = honest(message)
    reply.metadata.__dict__["_group_id"] = "7"
    return reply


def with_a_metric(message: Message) -> Message:
    return Message(records.to_request(Fields(update().arrays, {"loss": 1})), reply_to=message)


@pytest.fixture
def run_round() -> Any:
    InProcessGrid({})  # sets the ids without which Flower builds no message

    def run(answers: dict[int, Any], poll: float = 1.0) -> tuple[Coordinator, Pipe, Transcript, VirtualClock]:
        settings = RoundSettings(deadline=10.0)
        coordinator = Coordinator({"w": np.zeros(2, np.float32)}, PLAN, None, settings)
        grid, transcript, clock = Pipe(answers), Transcript(), VirtualClock()
        opened = coordinator.open(NODES, clock.now())
        exchange_messages(grid, coordinator, opened, transcript, clock, poll)
        return coordinator, grid, transcript, clock

    return run


def test_every_member_gets_the_same_content_and_every_reply_counts(run_round: Any) -> None:
    coordinator, grid, transcript, clock = run_round(dict.fromkeys(NODES, honest))
    assert coordinator.reply_count == 3
    assert len({id(message.content) for message in grid.pushed}) == 1
    assert {(m.metadata.group_id, m.metadata.message_type) for m in grid.pushed} == {("1", wire.TRAIN_ANCHOR)}
    assert [entry.direction for entry in transcript.entries] == ["down"] * 3 + ["up"] * 3
    assert clock.now() == 0.0


@pytest.mark.parametrize("bad", [failed, from_elsewhere, of_another_round, with_a_metric])
def test_a_reply_that_is_not_of_the_round_costs_itself_only(run_round: Any, bad: Any, caplog: Any) -> None:
    coordinator, _, transcript, _ = run_round({1000: bad, 1001: honest, 1002: honest})
    assert coordinator.reply_count == 2
    assert len(transcript.entries) == 6
    assert "Node 100" in caplog.text
    assert "diagnosis" not in caplog.text


def test_waiting_for_a_silent_device_ends_at_the_deadline(run_round: Any) -> None:
    coordinator, grid, _, clock = run_round({1000: honest}, poll=4.0)
    assert coordinator.reply_count == 1
    assert (clock.now(), grid.pulls) == (12.0, 3)


def test_a_poll_of_nothing_still_moves_the_clock(run_round: Any) -> None:
    _, _, _, clock = run_round({}, poll=0.0)
    assert clock.now() == pytest.approx(10.0, abs=0.01)


def test_a_round_whose_cohort_is_empty_sends_nothing_and_ends_at_once() -> None:
    coordinator = Coordinator({"w": np.zeros(2, np.float32)}, PLAN, None)
    opened = replace(coordinator.open(NODES), cohort=())
    grid, transcript, clock = Pipe(dict.fromkeys(NODES, honest)), Transcript(), VirtualClock()
    exchange_messages(grid, coordinator, opened, transcript, clock, poll=1.0)
    assert (grid.pushed, transcript.entries, grid.pulls, clock.now()) == ([], [], 0, 0.0)
