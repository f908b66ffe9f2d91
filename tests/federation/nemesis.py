"""A fleet with scripted faults behind Flower's real `Grid`: what devices and networks can do to a coordinator.

Invariants
- Devices are the toy's real ClientApps; a fault stands between one of them and the coordinator, by (round, node).
- The fleet lives on when the coordinator dies; the same script gives the same messages in a round that is run again.
- `HONEST` faults leave a device's update as it is, so it must be counted, once; no other reply may be.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import resume_coordinator, run_rounds
from fedmem.federation import flower_codec as records
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
    Run,
)
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.federation.wire import Fields
from fedmem.privacy.stream import PrivacyStream
from fedmem.sim.inproc_grid import InProcessGrid
from tests.federation.conftest import KEY, UNSAFE, Toy, toy_params

NODES = range(1000, 1008)
ROUNDS = 3
SECRET = "what a patient told her device"


def _content(reply: Message, **arrays: Array) -> RecordDict:
    """The reply's content with some of its arrays replaced."""
    return RecordDict({"update": ArrayRecord({**dict(reply.content["update"].items()), **arrays})})


def _raw(dtype: str, shape: tuple[int, ...], data: bytes, stype: str = records.STYPE) -> Array:
    return Array(dtype, shape, stype, data)


def _beside(reply: Message, name: str, record: Any) -> RecordDict:
    return RecordDict({**dict(reply.content.items()), name: record})


def _zeros_of_another_model(reply: Message) -> RecordDict:
    return records.to_reply(Fields({"theirs": np.zeros(5, np.int32)}))


CONTENTS: dict[str, Callable[[Message], RecordDict]] = {
    "garbage": lambda r: _content(r, b=_raw("int32", (3,), b"\xff" * 11)),
    "nan": lambda r: _content(r, b=_raw("float32", (3,), np.full(3, np.nan, "<f4").tobytes())),
    "beyond the clip": lambda r: _content(r, b=_raw("int32", (3,), b"\xff\xff\xff\x7f" * 3)),
    "the lowest number": lambda r: _content(r, b=_raw("int32", (3,), b"\x00\x00\x00\x80" * 3)),
    "huge": lambda r: _content(r, b=_raw("int32", (2**31 - 1, 2**31 - 1), b"\x00" * 12)),
    "ten gigabytes claimed": lambda r: _content(r, b=_raw("int32", (2_000_000_000, 2), b"\x00" * 12)),
    "a shape beyond numpy": lambda r: _content(r, b=_raw("int32", (0,) + (2**31 - 1,) * 7, b"")),
    "too many axes": lambda r: _content(r, b=_raw("int32", (1,) * 200, b"\x00" * 4)),
    "a pickle": lambda r: _content(r, b=_raw("object", (3,), b"\x80\x04cposix\nsystem\n.", "pickle")),
    "another encoding": lambda r: _content(r, b=Array(np.zeros(3, np.int32))),
    "an old protocol": lambda r: _content(r, b=_raw("int32", (3,), b"\x00" * 12, "fedmem.raw.le/1")),
    "an unversioned protocol": lambda r: _content(r, b=_raw("int32", (3,), b"\x00" * 12, "fedmem.raw.le")),
    "an extra array": lambda r: _content(r, **{SECRET: _raw("int32", (1,), b"\x00" * 4)}),
    "a metric": lambda r: _beside(r, "metrics", MetricRecord({"loss": 0.5})),
    "a note": lambda r: _beside(r, "config", ConfigRecord({"note": SECRET})),
    "another model": _zeros_of_another_model,
    "nothing": lambda r: RecordDict({}),
}

METADATA: dict[str, dict[str, Any]] = {
    "another round": {"_group_id": "999"},
    "a round of superscripts": {"_group_id": "²"},
    "a round without end": {"_group_id": "9" * 5000},
    "no round": {"_group_id": ""},
    "another run": {"_run_id": 999},
    "another request": {"_reply_to_message_id": "message-of-another-run"},
    "another's name": {"_src_node_id": 1000},
    "a stranger": {"_src_node_id": 5},
    "another message type": {"_message_type": "evaluate"},
}

BY_ITSELF = ("death", "hang", "late", "replay", "error")
HONEST = ("duplicate", "skew", "second thoughts")
FAULTS = (*CONTENTS, *METADATA, *BY_ITSELF, *HONEST)

Script = Mapping[tuple[int, int], str]


def _with(reply: Message, content: RecordDict | None = None, **metadata: Any) -> Message:
    meta = copy(reply.metadata)
    meta.__dict__.update(metadata)
    return Message(reply.content if content is None else content, metadata=meta)


class Nemesis(Grid):  # type: ignore[misc]  # mypy does not follow flwr
    """The fleet of `fleet`, with the faults of `script`; replies come in an order drawn from `seed`."""

    def __init__(self, fleet: InProcessGrid, script: Script, seed: int = 0) -> None:
        self.clock, self.script, self.asked = fleet.clock, script, list[tuple[int, int]]()
        self._fleet, self._seed = fleet, seed
        self._pushed: dict[str, Message] = {}
        self._replies: dict[tuple[int, int], Message] = {}

    def set_run(self, run: Run) -> None:
        self._fleet.set_run(run)

    @property
    def run(self) -> Run:
        return self._fleet.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._fleet.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return self._fleet.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        ids = list(self._fleet.push_messages(pushed))
        self._pushed |= dict(zip(ids, pushed, strict=True))
        return ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.pull_messages(self.push_messages(messages)))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        asked = [(i, self._pushed.pop(i)) for i in sorted(message_ids) if i in self._pushed]
        if not asked:
            return
        number = int(asked[0][1].metadata.group_id)
        random.Random(f"{self._seed}/{number}").shuffle(asked)
        # Answers of devices that hung in the round before come now, unasked.
        yield from (self._replies[key] for key in sorted(self._replies) if self._hung(key, number))
        late = []
        for message_id, message in asked:
            fault = self.script.get((number, message.metadata.dst_node_id), "")
            replies = self._answer(message_id, number, message.metadata.dst_node_id, fault)
            if fault == "late":
                late += replies
            else:
                yield from replies
        if late:
            self.clock.sleep(10**6)
            yield from late

    def _hung(self, key: tuple[int, int], number: int) -> bool:
        return key[0] == number - 1 and self.script.get(key) == "hang"

    def _answer(self, message_id: str, number: int, node: int, fault: str) -> list[Message]:
        if fault == "death":
            return []
        self.asked.append((number, node))
        reply = next(iter(self._fleet.pull_messages([message_id])))
        self._replies[number, node] = reply
        if fault in CONTENTS:
            return [_with(reply, CONTENTS[fault](reply))]
        if fault in METADATA:
            return [_with(reply, **METADATA[fault])] if METADATA[fault].get("_src_node_id") != node else []
        earlier = self._replies.get((number - 1, node))
        by_itself: dict[str, list[Message]] = {
            "hang": [],
            "late": [reply],
            "replay": [earlier] if earlier else [],
            "error": [Message(Error(1, SECRET), metadata=reply.metadata)],
            "duplicate": [reply, reply],
            "skew": [_with(reply, _created_at=1e12, _ttl=1e-9)],
            "second thoughts": [reply, _with(reply, CONTENTS["beyond the clip"](reply)), _with(reply)],
        }
        return by_itself.get(fault, [reply])


def only_honest(script: Script) -> dict[tuple[int, int], str]:
    """The same devices silent from the start: what a run may come to at worst."""
    return {key: "death" for key, fault in script.items() if fault and fault not in HONEST}


class Fleet:
    """A toy of eight devices under a script, and where its coordinator keeps its journal."""

    def __init__(self, root: Path, script: Script, *, seed: int = 0, settings: Any = None, **plan: Any) -> None:
        self.plan = DevicePlan(**{"population": 8, "rounds": 9, **(plan or UNSAFE)})
        self.toy = Toy(root, self.plan, texts=[["x" * size] for size in range(len(NODES))])
        self.grid = Nemesis(self.toy.grid(), script, seed)
        self.settings = {"seed": 5, "learning_rate": 0.1, "deadline": 60.0, **(settings or {})}

    def coordinator(self, params: Any = None, done: int = 0) -> Coordinator:
        stream = PrivacyStream(KEY, b"toy federation")
        return Coordinator(params or toy_params(), self.plan, stream, RoundSettings(**self.settings), done)

    def run(self, until: int = ROUNDS) -> tuple[Coordinator, Journal]:
        """Run, or go on from what lies in the root."""
        journal = Journal(self.toy.root)
        coordinator = resume_coordinator(journal, self.coordinator)
        run_rounds(self.grid, coordinator, journal, until=until)
        return coordinator, journal


def bytes_of(coordinator: Coordinator) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in (coordinator.params | coordinator.state).items()}


def ledger_rounds(journal: Journal) -> list[int]:
    return [event["round"] for event in journal.ledger.entries()]
