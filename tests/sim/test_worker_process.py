"""A worker keeps its own pipes and one thread, and ends with its parent."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fedmem.device.simulation_log import SimulationLog
from fedmem.federation import wire
from fedmem.federation.flower import Message, RecordDict
from fedmem.sim.inproc_grid import NODE_BASE, InProcessGrid
from tests.sim.processes import echo, gone, nothing_is_left, pids

__all__ = ["nothing_is_left"]


class Look(SimulationLog):
    """Notes about the process that a device runs in."""

    def __init__(self) -> None:
        super().__init__({})
        self.seen: list[tuple[int, Any]] = []

    def take(self, index: int) -> bytes:
        kept = [(name, os.readlink(f"/dev/fd/{name}")) for name in os.listdir("/dev/fd") if self._own(name)]
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return json.dumps([sys.modules["torch"].threads, blocked, os.getpid(), sorted(kept)]).encode()

    @staticmethod
    def _own(name: str) -> bool:
        try:
            return os.readlink(f"/dev/fd/{name}") not in ("/dev/null", f"/proc/{os.getpid()}/fd")
        except FileNotFoundError:
            return False

    def put(self, index: int, notes: bytes) -> None:
        self.seen.append((index, json.loads(notes)))


def test_a_worker_holds_its_own_pipe_and_stderr_and_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = types.SimpleNamespace(threads=2)
    torch.set_num_threads = lambda count: vars(torch).update(threads=count)
    monkeypatch.setitem(sys.modules, "torch", torch)
    look, silent = Look(), echo(lambda message, context: RecordDict({}))
    with (
        (tmp_path / "lock").open("w"),
        InProcessGrid(dict.fromkeys(range(4), silent), workers=2, simulation_log=look) as grid,
    ):
        for _ in range(2):
            grid.send_and_receive([Message(RecordDict({}), NODE_BASE + i, wire.TRAIN_ANCHOR) for i in range(4)])
        # A device is of one worker for good, by the order of the nodes.
        assert [(index, said[2]) for index, said in look.seen] == list(zip(range(4), pids(grid) * 2, strict=True)) * 2
    for _, (threads, blocked, _, kept) in look.seen:
        assert (threads, blocked) == (1, True)
        own = [place for name, place in kept if name not in ("1", "2")]
        assert len(own) == 3  # requests, replies, and the sign that the parent lives
        assert all(place.startswith("pipe:") for place in own)


ORPHANS = """
import os, sys, time
from fedmem.federation.flower import ClientApp, Message, RecordDict
from fedmem.sim.inproc_grid import NODE_BASE, InProcessGrid
app = ClientApp()
@app.train("anchor")
def hang(message, context):
    os.write(2, f"{os.getpid()}\\n".encode())
    time.sleep(600)
grid = InProcessGrid({0: app, 1: app, 2: app}, workers=3)
grid.send_and_receive([Message(RecordDict({}), NODE_BASE + index, "train.anchor") for index in range(3)])
"""


def test_workers_end_with_a_parent_that_was_killed_in_the_middle_of_their_work() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stderr=subprocess.PIPE)
    assert parent.stderr is not None
    left = [int(parent.stderr.readline()) for _ in range(3)]
    parent.kill()
    parent.wait()
    parent.stderr.close()
    assert all(gone(pid) for pid in left)
