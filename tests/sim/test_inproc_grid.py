"""A grid in one process: every message is bytes in a transcript, and a device runs once, when its reply is pulled."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmem.errors import Refused, UsageError
from fedmem.federation import wire
from fedmem.federation.flower import ConfigRecord, Message, RecordDict
from fedmem.federation.transcript import read_evidence
from fedmem.sim.inproc_grid import NODE_BASE, InProcessGrid
from tests.federation.conftest import Toy
from tests.federation.nemesis import FAULTS, NODES, Fleet, Nemesis
from tests.sim.processes import clients, echo, files, requests

Make = Callable[..., Toy]


@pytest.mark.parametrize("count", [1, 3])
def test_any_order_of_pulling_and_any_fault_gives_the_same(tmp_path: Path, count: int) -> None:
    """The nemesis pulls one by one, in an order of its own, and some never: those devices must not run."""
    script = {(1 + place % 3, node): fault for place, (fault, node) in enumerate(zip(FAULTS * 3, NODES, strict=False))}
    alone, beside = Fleet(tmp_path / "alone", script), Fleet(tmp_path / "beside", script)
    alone.run()
    with InProcessGrid(clients(beside.toy), workers=count) as grid:
        beside.grid = Nemesis(grid, script)
        beside.run()
    assert files(tmp_path / "beside") == files(tmp_path / "alone")
    assert beside.grid.asked == alone.grid.asked


def test_what_cannot_be_is_said_before_anything_runs(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = toy()
    with pytest.raises(UsageError):
        InProcessGrid(clients(made), workers=-1)
    with InProcessGrid(clients(made), workers=2) as grid:
        pass
    with pytest.raises(Refused, match="new grid"):
        grid.send_and_receive(requests(made, [0]))
    monkeypatch.delattr(os, "fork")
    with pytest.raises(UsageError, match="0 workers"):
        InProcessGrid(clients(made), workers=1)


def test_a_device_runs_when_its_reply_is_pulled_and_once(toy: Make) -> None:
    ran = list[int]()
    made = toy(before=ran.append)
    with made.grid() as grid:
        first, second = grid.push_messages(requests(made, [2, 0]))
        assert ran == []
        (reply,) = grid.pull_messages([second])
        assert (ran, reply.metadata.src_node_id) == ([0], NODE_BASE)
        assert [message.metadata.src_node_id - NODE_BASE for message in grid.pull_messages([second, first])] == [2]
        assert list(grid.pull_messages([first, second, "unknown"])) == []
        assert ran == [0, 2]


def test_every_message_is_in_the_transcript_before_its_reply_is_returned(toy: Make) -> None:
    made = toy()
    with made.grid() as grid:
        pulled = iter(grid.pull_messages(grid.push_messages(requests(made, [1, 3]))))
        reply = next(pulled)
        entries = [(entry.direction, entry.node - NODE_BASE) for entry in grid.transcript.entries]
        assert entries == [("down", 1), ("up", 1)]
        assert grid.transcript.entries[-1].nbytes == read_evidence(reply).nbytes > 0
        next(pulled)
        assert len(grid.transcript.entries) == 4


def test_the_two_sides_share_nothing_that_can_be_changed() -> None:
    kept = list[Message]()
    app = echo(lambda message, context: kept.append(message) or RecordDict({"seen": ConfigRecord({"n": [1, 2]})}))
    with InProcessGrid({0: app}) as grid:
        content = RecordDict({"config": ConfigRecord({"n": [1, 2]})})
        (reply,) = grid.send_and_receive([Message(content, NODE_BASE, wire.TRAIN_ANCHOR)])
        content["config"]["n"].append(3)
        assert kept[0].content["config"]["n"] == [1, 2]
        kept[0].content["config"]["n"].append(4)
        assert content["config"]["n"] == [1, 2, 3]
        assert reply.content["seen"]["n"] == [1, 2]


def test_time_is_virtual_and_nodes_are_in_their_order(toy: Make) -> None:
    with toy().grid() as grid:
        assert (grid.clock.now(), list(grid.get_node_ids())) == (0.0, [NODE_BASE + index for index in range(4)])
