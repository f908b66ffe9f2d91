"""A run's federation on Flower's simulation engine, in a process of its own: what tests compare other backends with.

Invariants
- Devices run in Ray's processes; each of them notes the outbound switches as it finds them.
- Flower draws node ids at random. Here each node bears the id that it has in an `InProcessGrid`, so everything else
  can be compared byte for byte, the draw of a cohort included.
- Noise comes from a key that the tests know.
- After each round but the last it says so on stdout, and goes on when a line comes.

    python -c "from tests.e2e.ray_fleet import main; main()" RELEASE DEVICES ROUNDS OUT
"""

import fedmem.federation.offline  # noqa: F401, I001  (before Flower and Ray)

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fedmem.coordinator.run_rounds import run_rounds
from fedmem.federation.client_app import make_client_app
from fedmem.coordinator.run_rounds import Patience
from fedmem.federation.device import Device
from fedmem.federation.flower import ClientApp, Context, Grid, Message, Run, ServerApp, telemetry
from fedmem.sim.inproc_grid import NODE_BASE
from fedmem.coordinator.journal import Journal
from fedmem.federation.offline import RAY_SWITCHES, SWITCHES
from tests.e2e.replay import Replay


@cache
def _device(release: str, devices: int, rounds: int, index: int) -> Device:
    return Replay(Path(release), devices, rounds).device(index)


def client_app(release: str, devices: int, rounds: int, out: str) -> ClientApp:
    """Partition i is device i of the run."""

    def device_for(context: Context) -> Device:
        found = {name: os.environ.get(name) for name in SWITCHES} | {"flower": telemetry.FLWR_TELEMETRY_ENABLED}
        Path(out, f"process-{os.getpid()}.json").write_text(json.dumps(found))
        return _device(release, devices, rounds, int(context.node_config["partition-id"]))

    return make_client_app(device_for)


class Numbered(Grid):  # type: ignore[misc]  # mypy does not follow flwr
    """Another grid, whose nodes bear the ids that `names` gives them."""

    def __init__(self, inner: Grid, names: dict[int, int]) -> None:
        self.inner, self.names, self.theirs = inner, names, {ours: node for node, ours in names.items()}

    def get_node_ids(self) -> Iterable[int]:
        return [self.names[node] for node in self.inner.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        for message in pushed:
            message.metadata.__dict__["_dst_node_id"] = self.theirs[message.metadata.dst_node_id]
        ids: Iterable[str] = self.inner.push_messages(pushed)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in self.inner.pull_messages(message_ids):
            reply.metadata.__dict__["_src_node_id"] = self.names[reply.metadata.src_node_id]
            yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("the loop pushes and pulls")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self.inner.create_message(*args, **kwargs)

    def set_run(self, run: Run) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        return self.inner.run


def _noting(register: Callable[..., dict[int, int]], names: dict[int, int]) -> Callable[..., dict[int, int]]:
    def registered(*args: Any, **kwargs: Any) -> dict[int, int]:
        found = register(*args, **kwargs)
        names.update({node: NODE_BASE + partition for node, partition in found.items()})
        return found

    return registered


def _wait(done: int, until: int) -> None:
    if done < until:
        print(f"closed {done}", flush=True)
        sys.stdin.readline()


def main() -> None:
    """Run it. The engine is in this process, so it knows which node is which partition."""
    release, devices, rounds, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.environ.update(RAY_SWITCHES)
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.simulation import run_simulation

    names, ended = dict[int, int](), list[int]()
    vce_api._register_nodes = _noting(vce_api._register_nodes, names)
    app = ServerApp()

    def serve(grid: Grid, context: Context) -> None:
        made, journal = Replay(Path(release), devices, rounds).coordinator(), Journal(Path(out, "journal"))
        patience = Patience(nodes=devices)
        run_rounds(Numbered(grid, names), made, journal, until=rounds, patience=patience, progress=_wait)
        ended.append(made.done)

    app.main()(serve)
    resources = {"init_args": {"num_cpus": 2, "include_dashboard": False}, "client_resources": {"num_cpus": 1}}
    try:
        run_simulation(app, client_app(release, devices, rounds, out), devices, backend_config=resources)
    except BaseException:  # noqa: BLE001  (the app's thread would go on waiting for devices that never come)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(0 if ended == [rounds] else 1)
