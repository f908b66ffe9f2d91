"""Worker processes change no byte; one that dies or hangs is a typed error, and none of them is left behind."""

import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.device.inproc import InprocPort
from fedmem.device.simulation_log import SimulationLog
from fedmem.errors import Refused, RemoteError
from fedmem.federation import wire
from fedmem.federation.client_app import make_client_app
from fedmem.federation.device import Device
from fedmem.federation.flower import Array, ArrayRecord, ClientApp, ConfigRecord, Context, Message, RecordDict
from fedmem.sim import workers
from fedmem.sim.inproc_grid import NODE_BASE, InProcessGrid
from fedmem.sim.workers import AHEAD, WorkerLost
from tests.federation.conftest import Toy, toy_params, toy_train
from tests.sim.processes import clients, echo, files, gone, nothing_is_left, pids, requests

__all__ = ["nothing_is_left"]

Make = Callable[..., Toy]
SEVEN = [["x" * size] for size in range(7)]
ALL = {"population": 7, "unsafe_no_dp": True, "unsafe_reason": "a toy"}
NOISY = {"population": 7, "noise_multiplier": 1.0, "sampling_rate": 0.7}


def ran(made: Toy, count: int) -> tuple[dict[str, bytes], list[Any], str]:
    with made.grid() if count == 0 else InProcessGrid(clients(made), workers=count) as grid:
        _, _, journal = made.run(until=3, grid=grid)
        assert len(pids(grid)) == count if count else grid._workers is None
        return files(made.root), list(grid.transcript.entries), journal.wire_digest()


def result(run: tuple[dict[str, bytes], list[Any], str]) -> tuple[dict[str, bytes], str]:
    """What a broken run that was resumed has in common with a whole one: its journal says that it was begun twice."""
    return {name: data for name, data in run[0].items() if name != "journal.jsonl"}, run[2]


@pytest.mark.parametrize("plan", [ALL, NOISY], ids=["all", "sampled and noisy"])
@pytest.mark.parametrize("counts", [(2, 3), (1, 9)])
def test_the_number_of_workers_changes_no_byte(toy: Make, plan: dict[str, Any], counts: tuple[int, int]) -> None:
    want = ran(toy(texts=SEVEN, **plan), 0)
    assert len(want[0]) == 5
    for count in counts:
        assert ran(toy(texts=SEVEN, **plan), count) == want


@pytest.mark.parametrize("count", [2, 3])
def test_a_run_goes_on_with_another_number_of_workers(toy: Make, count: int) -> None:
    want, made = ran(toy(texts=SEVEN, **NOISY), 0)[0], toy(texts=SEVEN, **NOISY)
    for until, now in enumerate((count, 0, 1), 1):
        with InProcessGrid(clients(made), workers=now) as grid:
            made.run(until=until, grid=grid)
    assert files(made.root) == want


def lazy(first: float) -> Callable[[int], None]:
    """Every second device takes its time, the first of all the most."""
    return lambda index: time.sleep(first / (index + 1) if index % 2 == 0 else 0.0)


def test_replies_come_in_the_order_of_the_requests_whoever_is_ready_first(toy: Make) -> None:
    made = toy(texts=SEVEN, before=lazy(0.3), **NOISY)
    with InProcessGrid(clients(made), workers=2) as grid:
        replies = grid.send_and_receive(requests(made, (5, 0, 1, 2, 3, 4)))
        assert [reply.metadata.src_node_id - NODE_BASE for reply in replies] == [5, 0, 1, 2, 3, 4]
    up = [entry.node - NODE_BASE for entry in grid.transcript.entries if entry.direction == "up"]
    assert up == [5, 0, 1, 2, 3, 4]


def killer(flag: Path, how: Callable[[], None]) -> Callable[[int], None]:
    """In the process of device 3, once: `how`."""

    def before(index: int) -> None:
        if index == 3 and not flag.exists():
            flag.touch()
            how()

    return before


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    raise SystemExit(10)  # what a device does whose vault is gone


def burst() -> None:
    raise KeyboardInterrupt("what a patient said")


@pytest.mark.parametrize("how", [kill_myself, leave, burst])
def test_a_worker_that_dies_leaves_the_round_open_and_a_resumed_run_has_the_same_bytes(
    toy: Make, tmp_path: Path, how: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    want = result(ran(toy(texts=SEVEN, **NOISY), 0))
    made = toy(texts=SEVEN, before=killer(tmp_path / "flag", how), **NOISY)
    with InProcessGrid(clients(made), workers=2) as grid:
        with pytest.raises(WorkerLost, match="run again") as caught:
            made.run(until=3, grid=grid)
        assert pids(grid) == []
    assert caught.value.exit_code == RemoteError.exit_code
    assert "what a patient said" not in "".join(capfd.readouterr())
    assert result(ran(made, 2)) == want


def test_a_worker_that_was_killed_between_two_rounds_is_noticed(toy: Make) -> None:
    made = toy(texts=SEVEN, **NOISY)
    with InProcessGrid(clients(made), workers=3) as grid:
        made.run(until=1, grid=grid)
        others = pids(grid)
        os.kill(others[1], signal.SIGKILL)
        with pytest.raises(WorkerLost):
            made.run(until=3, grid=grid)
        assert all(gone(pid) for pid in others)


def test_a_device_that_hangs_ends_the_round_within_the_patience(toy: Make, tmp_path: Path) -> None:
    made = toy(texts=SEVEN, before=killer(tmp_path / "flag", lambda: time.sleep(600)), **NOISY)
    start = time.monotonic()
    with InProcessGrid(clients(made), workers=2, patience=0.5) as grid, pytest.raises(WorkerLost):
        made.run(until=3, grid=grid)
    assert time.monotonic() - start < 10
    assert result(ran(made, 2)) == result(ran(toy(texts=SEVEN, **NOISY), 0))


def test_a_stopped_worker_that_reads_nothing_ends_the_round_within_the_patience(toy: Make) -> None:
    content = RecordDict({"big": ArrayRecord({"w": Array(np.zeros(1 << 20, np.float32))})})
    start, silent = time.monotonic(), echo(lambda message, context: RecordDict({}))
    with InProcessGrid(dict.fromkeys(range(2), silent), workers=2, patience=0.5) as grid:
        grid.send_and_receive([Message(RecordDict({}), NODE_BASE, wire.TRAIN_ANCHOR)])
        os.kill(pids(grid)[1], signal.SIGSTOP)
        with pytest.raises(WorkerLost):
            grid.send_and_receive([Message(content, NODE_BASE + index, wire.TRAIN_ANCHOR) for index in range(2)])
    assert time.monotonic() - start < 10


def test_a_reply_above_the_limit_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    big = echo(lambda message, context: RecordDict({"big": ArrayRecord({"w": Array(np.zeros(250, np.float32))})}))
    request = Message(RecordDict({}), NODE_BASE, wire.TRAIN_ANCHOR)
    for limit, expectation in ((2000, contextlib.nullcontext()), (1000, pytest.raises(WorkerLost))):
        monkeypatch.setattr(workers, "LONGEST", limit)
        with InProcessGrid({0: big}, workers=1) as grid, expectation:
            assert len(list(grid.send_and_receive([request]))) == 1


def test_a_pull_that_goes_on_after_close_is_refused(toy: Make) -> None:
    made = toy(texts=SEVEN, **NOISY)
    with InProcessGrid(clients(made), workers=2) as grid:
        pulled = grid.pull_messages(grid.push_messages(requests(made, range(7))))
        next(iter(pulled))
    with pytest.raises(Refused, match="new grid"):
        list(pulled)


def test_a_content_goes_to_each_worker_once(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, send = list[bytes](), Connection.send_bytes

    def counted(self: Connection, data: bytes) -> None:
        sent.append(data)
        send(self, data)

    monkeypatch.setattr(Connection, "send_bytes", counted)
    made = toy(texts=SEVEN, **ALL)
    with InProcessGrid(clients(made), workers=2) as grid:
        made.run(until=3, grid=grid)
    assert (sent.count(b"\1"), sent.count(b"\0")) == (3 * 2, 3 * (7 - 2))
    assert len(sent) == 3 * (2 + 2 * 7)


def test_replies_before_their_turn_are_few(toy: Make) -> None:
    texts = [["x"]] * 24
    made = toy(texts=texts, before=lambda index: time.sleep(0.5 if index == 0 else 0.0), **(ALL | {"population": 24}))
    with InProcessGrid(clients(made), workers=2) as grid:
        pulled = grid.pull_messages(grid.push_messages(requests(made, range(24))))
        next(iter(pulled))
        assert grid._workers is not None
        assert len(grid._workers._answers) == 2 * AHEAD - 1
        assert len(list(pulled)) == 23


def test_what_is_larger_than_a_pipe_goes_through_after_an_abandoned_pull_too() -> None:
    def grow(message: Message, context: Context) -> RecordDict:
        size = int(message.content["size"]["mib"])
        return RecordDict({"big": ArrayRecord({"w": Array(np.zeros(size << 18, np.float32))})})

    def asked(size: int) -> list[Message]:
        big = ArrayRecord({"w": Array(np.ones(size << 18, np.float32))})
        content = RecordDict({"size": ConfigRecord({"mib": size}), "big": big})
        return [Message(content, NODE_BASE + index, wire.TRAIN_ANCHOR, group_id=str(size)) for index in range(6)]

    with InProcessGrid(dict.fromkeys(range(6), echo(grow)), workers=2, patience=30.0) as grid:
        left = grid.push_messages(asked(1))
        next(iter(grid.pull_messages(left)))
        sizes = [reply.content["big"]["w"].numpy().nbytes for reply in grid.send_and_receive(asked(2))]
        assert sizes == [2 << 20] * 6
        assert len(list(grid.pull_messages(left))) == 5


def explode(texts: Sequence[str]) -> Callable[..., wire.Params]:
    def train(params: wire.Params, config: Any) -> wire.Params:
        if "two" in texts:
            raise MemoryError("what a patient said")
        return toy_train(texts)(params, config)

    return train


@pytest.mark.parametrize("count", [1, 2, 3])
def test_egress_lines_and_failures_are_complete_and_the_same(toy: Make, count: int) -> None:
    def run(workers: int) -> tuple[list[Any], list[str]]:
        made = toy(noise_multiplier=1.0)
        shapes, ports = wire.shapes_of(toy_params()), dict[int, InprocPort]()
        noted, devices = SimulationLog(ports), dict[int, ClientApp]()
        for index, texts in enumerate(made.texts):
            ports[index] = port = InprocPort(texts, made.plan, shapes)
            device = Device(index, port, made.plan, shapes, explode(texts), noted.failed)
            devices[index] = make_client_app(lambda _, d=device: d)  # type: ignore[misc]
        # What was said before the workers were started is not said again.
        devices[0](requests(made, [0])[0], Context(1, NODE_BASE, {}, RecordDict(), {}))
        with InProcessGrid(devices, workers=workers, simulation_log=noted) as grid:
            made.run(until=3, grid=grid)
        return [port.egress for port in ports.values()], noted.failures

    assert run(count) == run(0)
    lines, failures = run(count)
    assert failures == ["MemoryError"] * 3
    assert [[line.number for line in port] for port in lines] == [[1, 1, 2, 3]] + [[1, 2, 3]] * 3


def test_a_grid_that_is_dropped_ends_its_workers(toy: Make) -> None:
    made = toy(texts=SEVEN, **NOISY)
    grid = InProcessGrid(clients(made), workers=2)
    made.run(until=1, grid=grid)
    left = pids(grid)
    del grid
    gc.collect()
    assert all(gone(pid) for pid in left)


def test_a_child_of_the_coordinators_process_that_drops_the_grid_ends_nobody(toy: Make) -> None:
    made = toy(texts=SEVEN, **NOISY)
    with InProcessGrid(clients(made), workers=2) as grid:
        made.run(until=1, grid=grid)
        pid = os.fork()
        if pid == 0:
            grid.close()
            os._exit(0)
        os.waitpid(pid, 0)
        made.run(until=2, grid=grid)


def test_a_system_that_starts_no_further_process_is_a_typed_error(toy: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made, fork, before = toy(), os.fork, len(os.listdir("/dev/fd"))
    answers = iter([False, True])

    def full() -> int:
        if next(answers):
            raise OSError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", full)
    with InProcessGrid(clients(made), workers=2) as grid, pytest.raises(RemoteError, match="fewer workers"):
        grid.send_and_receive(requests(made, [0, 1]))
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before + 4  # multiprocessing's own two pipes of the process that did not start
