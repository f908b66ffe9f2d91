import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.coordinator import journal as journal_module
from fedmem.coordinator.journal import AppendLog, Journal, Traffic
from fedmem.errors import Refused, StorageError, VerificationFailed
from fedmem.federation.rounds import Durable
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files

NOISY = {"noise_multiplier": 1.0, "sampling_rate": 0.7}


class Killed(BaseException):
    """Not an Exception: nothing may catch it and go on."""


class Power:
    """Cuts the power at the `at`-th write: before it, in the middle of it, or right after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, when: str) -> None:
        self.writes, self.at, self.when = 0, at, when
        append, replace = Files.append, Files.replace

        def appended(files: Files, path: Path, offset: int, data: bytes, *, durable: bool = True) -> None:
            self._do(data, lambda part: append(files, path, offset, part, durable=durable))

        def replaced(files: Files, path: Path, data: bytes) -> None:
            self._do(data, lambda part: replace(files, path if part is data else path.with_suffix(".tmp"), part))

        monkeypatch.setattr(Files, "append", appended)
        monkeypatch.setattr(Files, "replace", replaced)

    def _do(self, data: bytes, write: Callable[[bytes], None]) -> None:
        self.writes += 1
        if self.writes != self.at:
            return write(data)
        if self.when != "before":
            write(data[: len(data) // 2] if self.when == "torn" else data)
        raise Killed


def state(journal: Journal) -> dict[str, Any]:
    """What must be equal whether or not there was a crash."""
    checkpoints = {path.name: path.read_bytes() for path in (journal.root / "checkpoints").glob("*.safetensors")}
    return {"ledger": journal.ledger.entries(), "wire": journal.wire_digest(), "checkpoints": checkpoints}


WRITES = 8  # two rounds of: open, spend, checkpoint, close


@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("at", range(1, WRITES + 1))
def test_a_coordinator_killed_at_any_write_ends_with_the_same_bytes(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, at: int, when: str
) -> None:
    _, want, whole = toy(**NOISY).run(until=2)
    made = toy(**NOISY)
    with monkeypatch.context() as patch:
        power = Power(patch, at, when)
        with pytest.raises(Killed):
            made.run(until=2)
        assert power.writes == at
    _, got, journal = made.run(until=2)
    assert {n: p.tobytes() for n, p in got.params.items()} == {n: p.tobytes() for n, p in want.params.items()}
    assert state(journal) == state(whole)
    assert state(Journal(made.root)) == state(whole)


def test_there_are_as_many_writes_as_are_cut(toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    power = Power(monkeypatch, at=0, when="before")
    toy(**NOISY).run(until=2)
    assert power.writes == WRITES


SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from fedmem.federation import wire
    from fedmem.coordinator import journal
    from fedmem.coordinator.run_rounds import resume_coordinator, run_rounds
    from fedmem.federation.client_app import make_client_app
    from fedmem.federation.rounds import Coordinator
    from fedmem.federation.device import Device
    from fedmem.federation.device_dp import DevicePlan
    from fedmem.sim.inproc_grid import InProcessGrid
    from fedmem.device.inproc import InprocPort
    from fedmem.privacy.stream import PrivacyStream
    from fedmem.storage.files import Files

    root, at = Path(sys.argv[1]), int(sys.argv[2])
    plan, shapes = DevicePlan(population=2, rounds=2, noise_multiplier=1.0), {"w": (5,)}
    train = lambda params, config: {"w": params["w"] + np.float32(config.seed % 7)}
    device = lambda context: Device(context.node_id, InprocPort([], plan, shapes), plan, shapes, train)
    writes, write = 0, Files.append

    def counted(*args, **how):
        global writes
        write(*args, **how)
        writes += 1
        if writes == at:
            os.kill(os.getpid(), signal.SIGKILL)

    Files.append = counted
    log = journal.Journal(root)
    make = lambda params, done: Coordinator(
        params or {"w": np.zeros(5, np.float32)}, plan, PrivacyStream(bytes(32), b"x"), finished_rounds=done
    )
    grid = InProcessGrid(dict.fromkeys(range(2), make_client_app(device)))
    run_rounds(grid, resume_coordinator(log, make), log, until=2)
"""


def test_a_process_killed_for_real_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    def run(root: Path, at: int) -> int:
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(root), str(at)]
        return subprocess.run(command, check=False, timeout=60).returncode

    killed = tmp_path / "killed"
    assert run(tmp_path / "whole", 0) == 0
    assert run(killed, 5) == -signal.SIGKILL
    assert Journal(killed).resume() is not None
    assert run(killed, 0) == 0
    assert state(Journal(killed)) == state(Journal(tmp_path / "whole"))


def test_a_round_spent_under_other_terms_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record_spend({"round": 1, "plan": {"clip": 1.0}})
    for again in (journal, Journal(tmp_path)):
        assert again.record_spend({"round": 1, "plan": {"clip": 1.0}}) == Durable(1)
        with pytest.raises(Refused, match="other terms"):
            again.record_spend({"round": 1, "plan": {"clip": 9.0}})
    # Another federation's round 1 is another round.
    journal.record_spend({"round": 1, "plan": {"clip": 9.0, "run": "another"}})
    assert len(journal.ledger.entries()) == 2


def test_a_round_that_was_spent_for_another_noise_is_not_closed_with_this_one(
    tmp_path: Path, toy: Callable[..., Any]
) -> None:
    """Two noises on the sum of one round would cancel each other. The journals of before name no noise."""
    coordinator, journal = toy(noise_multiplier=1.0).coordinator(), Journal(tmp_path)
    coordinator.open([1, 2, 3, 4])
    event = coordinator.spend()
    assert event["noise"] == "rounded-gaussian/1"
    journal.record_spend({key: value for key, value in event.items() if key != "noise"})
    with pytest.raises(Refused, match="other terms"):
        journal.record_spend(event)
    assert "noise" not in _opened(toy().coordinator()).spend()


def _opened(coordinator: Any) -> Any:
    coordinator.open([1, 2, 3, 4])
    return coordinator


def test_a_round_that_is_over_is_not_spent_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record_spend({"round": 1, "plan": {}})
    journal.record_abort(Traffic(1, 0, 0, "", 0, aborted=True))
    for again in (journal, Journal(tmp_path)):
        with pytest.raises(Refused, match="over"):
            again.record_spend({"round": 1, "plan": {}})
        left = again.resume()
        assert left is not None
        assert (left.finished_rounds, left.params, left.state) == (1, None, {})


def test_a_checkpoint_holds_the_servers_state_beside_the_parameters(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    params, momentum = {"w": np.ones(2, np.float32)}, {"momentum/w": np.full(2, 3, np.float32)}
    journal.record_close(params, Traffic(1, 0, 0, "", 1), momentum)
    left = Journal(tmp_path).resume()
    assert left is not None
    assert left.params is not None
    assert left.params.keys() == params.keys()
    assert left.state["momentum/w"].tolist() == [3, 3]
    assert journal.params_at(1).keys() == params.keys()


def test_what_a_round_costs_does_not_grow_with_the_rounds_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, calls = Journal(tmp_path), []
    encode = journal_module.canonical_json
    monkeypatch.setattr(journal_module, "canonical_json", lambda body: calls.append(1) or encode(body))
    monkeypatch.setattr(journal_module, "digest", lambda body: calls.append(1) or digest(body))
    costs = []
    for number in range(1, 41):
        calls.clear()
        journal.record_open(number)
        journal.record_spend({"round": number, "plan": {}})
        journal.record_close({"w": np.zeros(1, np.float32)}, Traffic(number, 0, 0, "", 1))
        costs.append(len(calls))
    assert len(set(costs)) == 1


def test_what_has_a_promise_is_synced_and_what_has_none_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.record_open(1)
    synced, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    for call, files in (
        (lambda: journal.record_open(2), set()),
        (lambda: journal.record_spend({"round": 1, "plan": {}}), {"ledger.jsonl"}),
        (lambda: journal.record_close({}, Traffic(1, 0, 0, "", 0)), {"journal.jsonl", ".tmp", "checkpoints"}),
        (lambda: journal.record_abort(Traffic(2, 0, 0, "", 0)), {"journal.jsonl"}),
    ):
        synced.clear()
        call()
        names = {".tmp" if path.endswith(".tmp") else Path(path).name for path in synced}
        assert names - {tmp_path.name} == files


def test_a_changed_entry_is_noticed(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    for number in range(3):
        log.append({"number": number})
    lines = log.path.read_bytes().splitlines(keepends=True)
    for changed in (
        [lines[0].replace(b'"number":0', b'"number":9'), *lines[1:]],
        [lines[0], lines[2]],
        [lines[1], lines[0], lines[2]],
        [b"not json\n", *lines],
    ):
        log.path.write_bytes(b"".join(changed))
        with pytest.raises(VerificationFailed):
            AppendLog(log.path)


def test_a_torn_line_is_dropped_and_the_next_one_follows_cleanly(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append({"number": 1})
    with log.path.open("ab") as file:
        file.write(b'{"previous":"half a li')
    again = AppendLog(log.path)
    assert again.entries() == [{"number": 1}]
    again.append({"number": 2})
    assert [json.loads(line)["body"]["number"] for line in log.path.read_bytes().splitlines()] == [1, 2]


def test_a_full_disk_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append({"number": 1})

    def full(handle: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StorageError):
            log.append({"number": 2})
    assert log.entries() == AppendLog(log.path).entries() == [{"number": 1}]


def test_a_changed_checkpoint_is_noticed(toy: Callable[..., Any]) -> None:
    _, _, journal = toy().run(until=1)
    path = next((journal.root / "checkpoints").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(VerificationFailed):
        journal.resume()


def test_every_round_is_in_the_ledger_once(toy: Callable[..., Any]) -> None:
    _, _, journal = toy(noise_multiplier=2.0).run(until=3)
    events = journal.ledger.entries()
    assert [event["round"] for event in events] == [1, 2, 3]
    assert {event["spend"]["noise_multiplier"] for event in events} == {2.0}
