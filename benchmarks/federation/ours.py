"""The arms without a foreign framework: fedmem itself, Flower's messages alone, and a plain loop.

`fedmem` has schema, clip, egress lines and the round journal with its fsyncs on; `bare` has real Flower messages and
apps in one process and none of these; `plain` is local training and a mean.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.federation import work
from benchmarks.federation.work import Timed
from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import run_rounds
from fedmem.device.inproc import InprocPort
from fedmem.federation.client_app import make_client_app
from fedmem.federation.device import Device
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import (
    Array,
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Grid,
    Message,
    RecordDict,
    Run,
)
from fedmem.federation.rounds import Coordinator
from fedmem.federation.wire import Params, shapes_of
from fedmem.sim.inproc_grid import NODE_BASE, InProcessGrid

CLIP = 100.0  # far above any update here, so that all arms take the same mean


def fedmem(devices: int, rounds: int, steps: int, timed: Timed) -> Params:
    """Run rounds of a federation as `fedmem sim` does."""
    start = work.start(steps)
    plan = DevicePlan(devices, rounds=rounds, clip=CLIP, unsafe_no_dp=True, unsafe_reason="a benchmark")
    made = {n: _app(n, plan, start, steps) for n in range(devices)}
    coordinator, grid = Coordinator(start, plan, None), InProcessGrid(made)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        timed.lap()
        run_rounds(grid, coordinator, journal, until=rounds, progress=lambda *_: timed.lap())
    return coordinator.params


def _app(device: int, plan: DevicePlan, start: Params, steps: int) -> ClientApp:
    shapes = shapes_of(start)
    port = InprocPort([], plan, shapes)
    made = Device(device, port, plan, shapes, lambda params, config: work.train(params, device, config.round, steps))
    return make_client_app(lambda _: made)


def plain(devices: int, rounds: int, steps: int, timed: Timed) -> Params:
    """Train on one device after the other, and take the mean of the results."""
    params = work.start(steps)
    timed.lap()
    for number in range(1, rounds + 1):
        params = mean(work.train(params, device, number, steps) for device in range(devices))
        timed.lap()
    return params


def mean(trained: Iterable[Params]) -> Params:
    """Return the mean of parameters, added one after the other."""
    total, count = Params(), 0
    for params in trained:
        total = {name: total.get(name, 0.0) + value for name, value in params.items()}
        count += 1
    return {name: value / np.float32(count) for name, value in total.items()}


class BareGrid(Grid):  # type: ignore[misc]  # mypy does not follow flwr
    """A Grid that only passes Flower's messages from one object to another."""

    def __init__(self, made: Callable[[int], ClientApp], devices: int) -> None:
        InProcessGrid({})  # Flower refuses to build a Message before it knows its task
        self._apps = {NODE_BASE + n: made(n) for n in range(devices)}
        self._context = Context(1, 0, {}, RecordDict(), {})

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *_: Any, **__: Any) -> Message: ...

    def get_node_ids(self) -> Iterable[int]:
        return self._apps

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        return iter(())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [self._apps[message.metadata.dst_node_id](message, self._context) for message in messages]


def bare(devices: int, rounds: int, steps: int, timed: Timed) -> Params:
    """Exchange the same messages without schema, clip, egress line, serialisation or journal."""
    grid = BareGrid(echo, devices)
    return average(grid, rounds, steps, timed)


def echo(device: int) -> ClientApp:
    """Return an app that trains and sends its parameters back."""
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        config = message.content["config"]
        after = work.train(from_record(message.content["params"]), device, config["round"], config["steps"])
        return Message(RecordDict({"params": to_record(after)}), reply_to=message)

    app.train()(train)
    return app


def to_record(params: Params) -> ArrayRecord:
    """Return parameters as Flower sends them."""
    return ArrayRecord({name: Array(value) for name, value in params.items()})


def from_record(record: ArrayRecord) -> Params:
    """Return parameters out of Flower's record."""
    return {name: array.numpy() for name, array in record.items()}


def average(grid: Grid, rounds: int, steps: int, timed: Timed) -> Params:
    """Run rounds of federated averaging over any Grid."""
    params = work.start(steps)
    nodes = list(grid.get_node_ids())
    timed.lap()
    for number in range(1, rounds + 1):
        content = RecordDict({"params": to_record(params), "config": ConfigRecord({"round": number, "steps": steps})})
        replies = grid.send_and_receive([Message(content, node, "train") for node in nodes])
        params = mean(from_record(reply.content["params"]) for reply in replies)
        timed.lap()
    return params
