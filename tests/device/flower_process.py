"""A network-facing process for tests: a whole toy federation around one real device behind the socket.

    python flower_process.py run OUT          two rounds; OUT gets what was handed to Flower, and what was approved
    python flower_process.py look OUT         OUT gets descriptors and texts; then it waits for OUT.go
    python flower_process.py rounds OUT       rounds without end; OUT gets a line for each answer that leaves
    python flower_process.py train OUT        a training without end on what the vault gave; OUT gets how it ended

FEDMEM_DEVICE names the runtime folder. OUT appears whole.
"""

import json
import os
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fedmem.federation import fixedpoint, wire
from fedmem.federation.connection import PeerGone
from fedmem.federation.device import TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.runtime import Runtime
from fedmem.federation.socket_port import SocketPort

SHAPES = {"b": (3,), "w": (4, 3)}


class Noting:
    """The port, and the digests of what it approved."""

    def __init__(self, port: SocketPort) -> None:
        self.port, self.approved = port, list[str]()

    def admit(self, number: int) -> None:
        self.port.admit(number)

    def approve(self, fields: wire.Fields, number: int) -> wire.Fields:
        approved = self.port.approve(fields, number)
        self.approved.append(approved.digest())
        return approved


def tell(out: Path, what: Any) -> None:
    part = out.with_suffix(".part")
    part.write_text(json.dumps(what))
    os.replace(part, out)


def learns(texts: Any) -> Any:
    """Moves every parameter a little, by draws that depend on the seed and on every letter of the texts."""

    def train(params: wire.Params, config: Any) -> wire.Params:
        generator = np.random.default_rng([config.seed, zlib.crc32(repr(texts).encode())])
        return {n: v + generator.normal(0, 0.01, v.shape).astype(np.float32) for n, v in sorted(params.items())}

    return train


def run(plan: DevicePlan, port: SocketPort, out: Path) -> None:
    # Here, since loading Flower takes a second that the other ways do not need.
    from fedmem.coordinator.journal import Journal
    from fedmem.coordinator.run_rounds import run_rounds
    from fedmem.federation.client_app import make_client_app
    from fedmem.federation.device import Device
    from fedmem.federation.rounds import Coordinator, RoundSettings
    from fedmem.sim.inproc_grid import InProcessGrid

    noting = Noting(port)
    device = Device(0, noting, plan, SHAPES, learns(port.shareable()))
    grid = InProcessGrid({0: make_client_app(lambda context: device)})
    start = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    coordinator = Coordinator(start, plan, None, RoundSettings(seed=5, learning_rate=0.1))
    with tempfile.TemporaryDirectory() as folder:
        run_rounds(grid, coordinator, Journal(Path(folder)), until=2)
    tell(out, {"sent": [list(entry) for entry in grid.transcript.entries], "approved": noting.approved})


def look(plan: DevicePlan, port: SocketPort, out: Path) -> None:
    texts, own = port.shareable(), "/proc/self/fd"
    held = {name: os.readlink(f"{own}/{name}") for name in os.listdir(own) if os.path.lexists(f"{own}/{name}")}
    private = ("sqlalchemy", "cryptography", "fedmem.vault", "fedmem.policy", "fedmem.device")
    modules = [name for name in sys.modules if name.startswith(private)]
    tell(out, {"pid": os.getpid(), "held": held, "texts": texts, "modules": modules})
    while not out.with_suffix(".go").exists():
        time.sleep(0.02)


def rounds(plan: DevicePlan, port: SocketPort, out: Path) -> None:
    port.shareable()
    number, zeros = 0, wire.Fields(dict(fixedpoint.zeros(SHAPES)))
    while True:
        number += 1
        port.approve(zeros, number)
        with out.open("a") as file:
            file.write(f"{number} {os.getpid()}\n")


def train(plan: DevicePlan, port: SocketPort, out: Path) -> None:
    def endless(params: wire.Params, config: TrainConfig) -> wire.Params:
        port.shareable()
        out.write_text(f"0 {os.getpid()}\n")
        while True:
            time.sleep(0.1)

    try:
        port.watched(endless)({}, TrainConfig(1, 1, 1, 1, 0.1))
    except PeerGone:
        with out.open("a") as file:
            file.write("stopped\n")


if __name__ == "__main__":
    way, place = sys.argv[1:]
    runtime = Runtime.from_environment()
    device_port = SocketPort(runtime.folder, runtime.terms(), runtime.token(), 20.0)
    ways = {"run": run, "look": look, "rounds": rounds, "train": train}
    ways[way](runtime.agreement().plan, device_port, Path(place))
