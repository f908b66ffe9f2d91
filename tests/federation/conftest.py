"""A toy federation: real apps, grid, journal and coordinator; numpy devices whose update depends on their texts."""

import gc
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.coordinator.journal import Journal, Traffic
from fedmem.coordinator.run_rounds import resume_coordinator, run_rounds
from fedmem.device.inproc import InprocPort
from fedmem.federation import wire
from fedmem.federation.client_app import make_client_app
from fedmem.federation.device import Device, TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.flower import ClientApp, Context
from fedmem.federation.rounds import Coordinator, RoundSettings
from fedmem.privacy.stream import PrivacyStream
from fedmem.sim.inproc_grid import InProcessGrid

UNSAFE = {"unsafe_no_dp": True, "unsafe_reason": "a toy"}
KEY = bytes(range(32))


def toy_params() -> wire.Params:
    generator = np.random.default_rng(3)
    return {
        "w": generator.normal(size=(4, 3)).astype(np.float32),
        "b": generator.normal(size=3).astype(np.float32),
    }


def toy_train(texts: Sequence[str]) -> Callable[[wire.Params, TrainConfig], wire.Params]:
    """Moves every parameter by draws from the device's own seed, scaled by what it holds."""

    def train(params: wire.Params, config: TrainConfig) -> wire.Params:
        generator = np.random.default_rng(config.seed)
        size = np.float32(0.1 * sum(map(len, texts)))
        return {n: v + size * generator.normal(size=v.shape).astype(np.float32) for n, v in sorted(params.items())}

    return train


@dataclass
class Toy:
    """One federation: texts by device, a plan, and where its journal lies."""

    root: Path
    plan: DevicePlan
    texts: list[list[str]] = field(default_factory=lambda: [["one"], ["two", "three"], [], ["four"]])
    train: Callable[[Sequence[str]], Callable[..., wire.Params]] = toy_train
    before: Callable[[int], None] = lambda index: None
    ports: list[InprocPort] = field(default_factory=list)
    workers: int = 0

    def device(self, context: Context) -> Device:
        index = int(context.node_config["partition-id"])
        self.before(index)
        shapes = wire.shapes_of(toy_params())
        port = InprocPort(self.texts[index], self.plan, shapes)
        self.ports.append(port)
        return Device(index, port, self.plan, shapes, self.train(port.shareable()))

    def grid(self, app: ClientApp | None = None) -> InProcessGrid:
        shared = app or make_client_app(self.device)
        return InProcessGrid(dict.fromkeys(range(len(self.texts)), shared), workers=self.workers)

    def coordinator(self, params: wire.Params | None = None, done: int = 0) -> Coordinator:
        noise = PrivacyStream(KEY, b"toy federation")
        return Coordinator(params or toy_params(), self.plan, noise, RoundSettings(seed=5, learning_rate=0.1), done)

    def run(self, until: int = 2, grid: Any = None) -> tuple[list[Traffic], Coordinator, Journal]:
        """Run, or go on from what lies in `root`."""
        journal = Journal(self.root)
        coordinator = resume_coordinator(journal, self.coordinator)
        return run_rounds(grid or self.grid(), coordinator, journal, until=until), coordinator, journal


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Toy]:
    """Make a toy federation in a folder of its own; keywords are of `DevicePlan` or `Toy`."""
    made = iter(range(10**6))

    def make(**changes: Any) -> Toy:
        inside = {key: changes.pop(key) for key in ("texts", "train", "before", "root", "workers") if key in changes}
        root = inside.pop("root", tmp_path / f"federation-{next(made)}")
        plan = DevicePlan(**{"population": 4, "rounds": 9, **(changes if changes else UNSAFE)})
        return Toy(root, plan, **inside)

    return make


def _inside(thing: object) -> Iterator[object]:
    if isinstance(thing, types.FunctionType):
        # Not `__globals__`: code that is loaded is in every process; data is what must not be.
        yield from (thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__)
    elif isinstance(thing, weakref.ref):
        yield thing()
    else:
        yield from gc.get_referents(thing)


@pytest.fixture
def reachable() -> Callable[[object], list[object]]:
    """Everything that attributes, containers, closures and weak references lead to; not modules, not classes."""

    def walk(root: object) -> list[object]:
        seen: dict[int, object] = {}
        todo = [root]
        while todo:
            thing = todo.pop()
            if id(thing) in seen or isinstance(thing, (types.ModuleType, type)):
                continue
            seen[id(thing)] = thing
            todo.extend(_inside(thing))
        return list(seen.values())

    return walk
