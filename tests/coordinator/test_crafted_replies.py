"""Crafted replies by the thousand: none ends a run, none is counted, none costs more than the schema's size twice."""

import itertools
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.coordinator.exchange import exchange_messages
from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import run_rounds
from fedmem.federation import flower_codec as records
from fedmem.federation.clock import VirtualClock
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.federation.transcript import Transcript
from fedmem.federation.wire import Fields
from fedmem.sim.inproc_grid import InProcessGrid
from tests.federation.conftest import toy_params
from tests.federation.crafted import crafted_reply

HONEST, FIRST = 1000, 1001
UPDATE = Fields({"b": np.array([1, -2, 3], np.int32), "w": np.full((4, 3), 5, np.int32)})
SETTINGS = RoundSettings(seed=5, learning_rate=0.1, deadline=10.0)


class Crowd:
    """A grid on which node `HONEST` answers well, last of all, and every other node by `craft`."""

    def __init__(self, nodes: int, craft: Callable[[Message], Message | None]) -> None:
        InProcessGrid({})  # sets the ids without which Flower builds no message
        self.clock, self.craft, self.nodes = VirtualClock(), craft, list(range(HONEST, HONEST + nodes))
        self.pushed: dict[str, Message] = {}
        self._numbers = itertools.count()

    def get_node_ids(self) -> list[int]:
        return self.nodes

    def push_messages(self, messages: list[Message]) -> list[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{next(self._numbers)}"
        self.pushed = {message.metadata.message_id: message for message in messages}
        return list(self.pushed)

    def pull_messages(self, message_ids: list[str]) -> Iterator[Message]:
        asked = [self.pushed.pop(message_id) for message_id in message_ids if message_id in self.pushed]
        for message in sorted(asked, key=lambda message: -message.metadata.dst_node_id):
            if message.metadata.dst_node_id == HONEST:
                yield Message(records.to_reply(UPDATE), reply_to=message)
            elif (reply := self.craft(message)) is not None:
                yield reply


def run(folder: Path, nodes: int, craft: Callable[[Message], Message | None], until: int) -> tuple[list[int], Any]:
    plan = DevicePlan(population=nodes, rounds=until, unsafe_no_dp=True, unsafe_reason="a test")
    coordinator = Coordinator(toy_params(), plan, None, SETTINGS)
    traffic = run_rounds(Crowd(nodes, craft), coordinator, Journal(folder), until=until)  # type: ignore[arg-type]
    return [row.counted for row in traffic], coordinator.params


@pytest.mark.parametrize(
    ("seed", "nodes", "until"), [(1, 251, 2), pytest.param(2, 1001, 10, marks=pytest.mark.slow)], ids=["500", "10000"]
)
def test_no_crafted_reply_ends_a_run_or_is_counted(tmp_path: Path, seed: int, nodes: int, until: int) -> None:
    draw = random.Random(seed)
    counted, params = run(tmp_path / "crafted", nodes, lambda message: crafted_reply(draw, message, UPDATE), until)
    silent, wanted = run(tmp_path / "silent", nodes, lambda message: None, until)
    assert counted == silent == [1] * until
    assert all(params[name].tobytes() == wanted[name].tobytes() for name in wanted)


BIG = (512, 512)
"""A schema of one MiB."""
CELLS = np.ones(BIG, np.int32)


def _reply(content: RecordDict | Error) -> Callable[[Message], Message]:
    return lambda message: Message(content, reply_to=message)


def _arrays(**arrays: Array) -> Callable[[Message], Message]:
    return _reply(RecordDict({"update": ArrayRecord(arrays)}))


def _one_bad_cell() -> bytes:
    cells = CELLS.copy()
    cells[-1, -1] = 2**31 - 1
    return cells.tobytes()


LARGE = bytes(32 << 20)
COSTLY = {
    "32 MB in place of one": lambda: _arrays(w=Array("int32", BIG, records.STYPE, LARGE)),
    "32 MB of its own shape": lambda: _arrays(w=Array("int32", (2**23,), records.STYPE, LARGE)),
    "32 MB beside the update": lambda: _arrays(
        w=Array("int32", BIG, records.STYPE, CELLS.tobytes()), x=Array("int32", (2**23,), records.STYPE, LARGE)
    ),
    "the same bytes under another name": lambda: _arrays(x=Array("int32", BIG, records.STYPE, CELLS.tobytes())),
    "the same bytes of another shape": lambda: _arrays(w=Array("int32", BIG[:1] * 3, records.STYPE, CELLS.tobytes())),
    "a cell out of range": lambda: _arrays(w=Array("int32", BIG, records.STYPE, _one_bad_cell())),
    "32 MB of note": lambda: _reply(RecordDict({"update": ConfigRecord({"note": LARGE})})),
    "32 MB of reason": lambda: _reply(Error(1, "x" * (32 << 20))),
    "a head of two terabytes": lambda: _arrays(w=Array("int32", (2**39,), records.STYPE, b"")),
    "100,000 arrays": lambda: _arrays(**{f"w{n}": Array("int32", (1,), records.STYPE, bytes(4)) for n in range(10**5)}),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_a_refused_reply_costs_at_most_the_schema_twice(kind: str) -> None:
    plan = DevicePlan(population=2, unsafe_no_dp=True, unsafe_reason="a test")
    coordinator = Coordinator({"w": np.zeros(BIG, np.float32)}, plan, None, SETTINGS)
    make = COSTLY[kind]()

    def craft(message: Message) -> Message:
        reply = make(message)
        tracemalloc.start()  # what the reply itself needs is its sender's and Flower's
        return reply

    grid = Crowd(2, craft)
    opened = coordinator.open([FIRST], 0.0)
    try:
        exchange_messages(grid, coordinator, opened, Transcript(), grid.clock, 1.0)  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert coordinator.reply_count == 0
    assert 0 < peak <= 2 * coordinator.reply_schema.nbytes
