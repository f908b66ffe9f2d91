"""Training in sessions: limits, pause, resume to the byte, refusals, and what is left of a checkpoint."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from fedmem.device import session_lock as trainer
from fedmem.device import training_sessions as training
from fedmem.device.learning import LearnSettings
from fedmem.device.training_sessions import (
    Limits,
    SessionResult,
    cancel,
    pause,
    train,
    training_statuses,
)
from fedmem.erasure import residue
from fedmem.errors import Busy, NothingMatched, Refused, UsageError
from fedmem.memory.spec import MemorySpec
from fedmem.policy.policy import Policy
from fedmem.privacy import footprint
from fedmem.privacy.plan import PrivacyPlan
from fedmem.sdk.client import Client
from fedmem.storage.files import Files
from fedmem.training.release import Release
from fedmem.vault.crypto import container
from fedmem.vault.store.core import StaleReader
from fedmem.vault.vault import NewRecord, Vault

NOTES = ["My doctor prescribed new tablets for my blood pressure.", "The nurse measured my fever.", "A third visit."]
PLAN = PrivacyPlan(sampling_rate=0.5, steps=6, clip=0.1, noise_multiplier=4.0, divisor=4.0, delta=1e-5, record_cap=100)
SETTINGS = LearnSettings(width=4, length=16)
HEALTH = Policy.load().topics["health"]
KEY = bytes(range(32))


@pytest.fixture
def root(tmp_path: Path, release: Release) -> Path:
    with Vault.create(tmp_path / "v", subject="ana") as vault:
        vectors = torch.eye(128).numpy()
        vault.add_records(
            [NewRecord(text, "health", (0, i), vectors[i], release.digest) for i, text in enumerate(NOTES)]
        )
    return tmp_path / "v"


@pytest.fixture
def shared(root: Path) -> Iterator[Vault]:
    with Vault.open(root, subject="ana") as vault:
        yield vault


class After:
    """Says stop once it was asked so many times."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def go(vault: Vault, release: Release, *, steps: int = 99, limits: Limits | None = None, **options) -> SessionResult:
    settings = options.pop("settings", SETTINGS)
    plan = options.pop("plan", PLAN)
    return train(vault, release, HEALTH, plan, limits, settings=settings, stop=After(steps), **options)


def kinds(vault: Vault) -> list[str]:
    return [event.kind for event in vault.ledger.events()]


def fixed_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run gets the same key, so that runs in two vaults can be compared byte by byte."""
    from fedmem.vault.store import runs

    start = runs.Runs._start
    monkeypatch.setattr(runs.Runs, "_start", lambda self, facts, spend, key, old: start(self, facts, spend, KEY, old))


def test_sessions_add_up_to_the_bytes_of_one_run(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed_key(monkeypatch)
    found = []
    for name, cuts in (("straight", [99]), ("cut", [1, 2, 99])):
        with Vault.create(tmp_path / name, subject="ana") as vault:
            vectors = torch.eye(128).numpy()
            vault.add_records(
                [NewRecord(text, "health", (0, i), vectors[i], release.digest) for i, text in enumerate(NOTES)]
            )
        for steps in cuts:
            with Vault.open(tmp_path / name, subject="ana") as vault:
                ended = go(vault, release, steps=steps)
        assert (ended.state, ended.step, ended.steps) == ("done", 6, 6)
        with Vault.open(tmp_path / name, subject="ana") as vault:
            found.append(load(bytes(vault.block_rows(ended.block)))["rows"])
            assert kinds(vault) == ["spend", "run_finished"]
    assert found[0].abs().max() > 0
    assert torch.equal(*found)


def test_a_deadline_shorter_than_a_step_still_makes_progress(shared: Vault, release: Release) -> None:
    steps = []
    while True:
        limits = Limits(datetime.now(UTC) + timedelta(seconds=0.05))
        ended = go(shared, release, limits=limits)
        steps.append(ended.step)
        if ended.state == "done":
            break
    assert steps == sorted(set(steps))
    assert kinds(shared) == ["spend", "run_finished"]


def test_a_training_that_paused_under_another_noise_ends_failed_and_charged(
    shared: Vault, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two different noises on one sum would cancel each other. The run of before says nothing about its noise."""
    with monkeypatch.context() as before:
        before.setattr("fedmem.device.learning.MECHANISM", None)
        assert go(shared, release, steps=2).state == "paused"
    with pytest.raises(Refused, match="rounded-gaussian/1"):
        go(shared, release)
    assert kinds(shared) == ["spend", "run_failed"]
    assert go(shared, release).state == "done"
    assert kinds(shared) == ["spend", "run_failed", "spend", "run_finished"]


def test_a_resumed_session_takes_up_where_it_stood(shared: Vault, release: Release) -> None:
    seen: list[int] = []
    assert go(shared, release, steps=2) == SessionResult(training_statuses(shared)[0].run, "paused", 2, 6)
    go(shared, release, progress=lambda step, _: seen.append(step))
    assert seen == [3, 4, 5, 6]


def test_the_vault_is_free_while_steps_are_computed(shared: Vault, release: Release, root: Path) -> None:
    """Another program writes, reads and answers in the middle of the training."""

    def other(step: int, _: int) -> None:
        if step != 2:
            return
        with Client.open("ana", path=root, release=release) as client:
            client.add("A note on maps.")
        with Client.open("ana", path=root, release=release, write=False) as client:
            assert client.search("maps", k=1)
            with pytest.raises(Refused):
                client.add("not while reading")

    assert go(shared, release, progress=other).state == "done"
    assert len(shared.blocks()) == 1


def test_a_program_that_writes_keeps_it_from_beginning(shared: Vault, release: Release, root: Path) -> None:
    shared.core.timeout = 0.0
    with Vault.open(root, subject="ana") as other, other.core.turn(), pytest.raises(Busy) as caught:
        go(shared, release)
    assert caught.value.exit_code == 7
    assert kinds(shared) == []


def test_one_training_at_a_time(shared: Vault, release: Release) -> None:
    def second(*_: int) -> None:
        with pytest.raises(Busy, match="runs already"):
            go(shared, release)

    go(shared, release, progress=second)
    assert kinds(shared) == ["spend", "run_finished"]


@pytest.mark.parametrize("change", ["record", "plan", "settings"])
def test_after_a_change_it_fails_stays_charged_and_begins_nothing(
    shared: Vault, release: Release, root: Path, change: str
) -> None:
    go(shared, release, steps=2)
    (run,) = training_statuses(shared)
    options: dict = {}
    if change == "record":
        with Client.open("ana", path=root, release=release) as client:
            client.add("One more visit to the doctor.", topic="health")
    elif change == "plan":
        options["plan"] = PrivacyPlan(**PLAN.to_dict() | {"noise_multiplier": 5.0})
    else:
        options["settings"] = LearnSettings(width=4, length=16, seed=1)
    with pytest.raises(Refused, match="changed since") as caught:
        go(shared, release, **options)
    assert caught.value.exit_code == 4
    assert kinds(shared) == ["spend", "run_failed"]
    assert [(one.run, one.state, one.message) for one in training_statuses(shared)] == [(run.run, "failed", "")]
    assert list((root / "training").glob("*.fmc")) == []


def checkpoint(root: Path) -> bytes:
    (path,) = (root / "training").glob("*.fmc")
    return path.read_bytes()


@pytest.mark.parametrize("end", ["finish", "cancel", "erase", "erase one record"])
def test_of_a_checkpoint_nothing_is_left(shared: Vault, release: Release, root: Path, end: str) -> None:
    go(shared, release, steps=2)
    sealed = checkpoint(root)
    needles = residue.windows(sealed[container.read_header(sealed)[1] :][:8192], "checkpoint")
    assert residue.scan(root, needles)
    shared.close()
    if end == "finish":
        with Vault.open(root, subject="ana") as vault:
            go(vault, release)
    elif end == "cancel":
        with Vault.open(root, subject="ana") as vault:
            cancel(vault, "health")
    else:
        with Client.open("ana", path=root, release=release) as client:
            record = [client.search("doctor", k=1)[0].id]
            planned = client.erase.plan(topic="health") if end == "erase" else client.erase.plan(record=record)
            assert planned.items["checkpoints"] == 1
            assert planned.counts["checkpoint"] == 1
            erased = planned.execute()
            assert client.erase.verify(erased.id, deep=True).is_clean
    assert residue.scan(root, needles) == []
    with Vault.open(root, subject="ana") as vault:
        assert not [one for one in training_statuses(vault) if one.state == "paused"]


def test_a_checkpoint_is_sealed(shared: Vault, release: Release, root: Path) -> None:
    kept: list[bytes] = []
    save = Vault.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Vault, "save_checkpoint", lambda self, run, step, data: kept.append(data) or save(self, run, step, data)
        )
        go(shared, release, steps=2)
    (path,) = (root / "training").glob("*.fmc")
    assert len(kept) == 1
    assert residue.scan(root, residue.windows(kept[0][512:4096], "moments")) == []
    assert b"health" not in path.read_bytes()


def test_a_copied_or_damaged_checkpoint_changes_nothing(shared: Vault, release: Release, root: Path) -> None:
    """An older one only costs time, a damaged one counts as none: data, plan and stream are the run's either way."""
    go(shared, release, steps=1)
    first = checkpoint(root)
    go(shared, release, steps=1)
    (path,) = (root / "training").glob("*.fmc")
    seen: list[int] = []
    for data, expected in ((first, 2), (first[:-1] + b"\0", 1), (first[:40], 1), (b"", 1)):
        path.write_bytes(data)
        go(shared, release, steps=1, progress=lambda step, _: seen.append(step))
        assert seen.pop() == expected


@pytest.mark.parametrize("at", range(0, 24, 3))
def test_a_crash_at_any_operation_leaves_a_run_that_ends_the_same(
    root: Path, release: Release, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(BaseException):
        pass

    with Vault.open(root, subject="ana") as vault:
        go(vault, release, steps=3)
    left = iter(range(at))

    def cut(operation: str, path: Path) -> None:
        if operation != "read" and next(left, None) is None:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Files, "sweep", lambda *_: 0)
        try:
            with Vault.open(root, subject="ana", files=Files(cut)) as vault:
                go(vault, release)
        except Cut:
            pass
    with Vault.open(root, subject="ana") as vault:
        if not vault.blocks():
            assert go(vault, release).state == "done"
        assert len(vault.blocks()) == 1
        assert kinds(vault) == ["spend", "run_finished"]
        assert list((root / "training").glob("*.fmc")) == []


def test_an_erasure_stops_it_and_is_complete(shared: Vault, release: Release, root: Path) -> None:
    def erase() -> str:
        with Client.open("ana", path=root, release=release) as client:
            state = client.erase.plan(topic="health").execute().state
        return state

    def begin(step: int, _: int) -> None:
        if step == 2:
            erasures.append(pool.submit(erase))
            while shared.generation == 0:
                time.sleep(0.01)

    erasures: list[Future[str]] = []
    with ThreadPoolExecutor() as pool:
        with pytest.raises(Busy, match="erased"):
            go(shared, release, progress=begin)
        assert erasures[0].result() == "completed"
    with Vault.open(root, subject="ana") as vault:
        assert training_statuses(vault) == []
        assert vault.blocks() == []
        assert kinds(vault)[0] == "spend"


def test_an_erasure_is_not_kept_waiting_by_one_who_waits_to_write(shared: Vault, release: Release, root: Path) -> None:
    with Client.open("ana", path=root, release=release) as client, client._vault.core.turn():
        client.erase.plan(topic="health").execute()
        with shared.core.in_use(), pytest.raises(StaleReader, match="erased"), shared.core.turn():
            pass


def test_it_is_saved_now_and_then_for_the_case_that_it_is_killed(
    shared: Vault, release: Release, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(step: int, _: int) -> None:
        seen.append(step)
        if step == 3:
            turn.__enter__()  # at its save after this step another program writes
        if step == 5:
            raise Killed
        if step == 4:
            turn.__exit__(None, None, None)

    seen: list[int] = []
    shared.core.timeout = 0.0
    other = Vault.open(root, subject="ana")
    turn = other.core.turn()
    monkeypatch.setattr(training, "CHECKPOINT_INTERVAL", 0.0)
    with pytest.raises(Killed):
        go(shared, release, progress=killed)
    assert [(one.state, one.step) for one in training_statuses(shared)] == [("paused", 4)]
    go(shared, release, progress=lambda step, _: seen.append(step))
    assert seen == [1, 2, 3, 4, 5, 5, 6]
    assert kinds(shared) == ["spend", "run_finished"]


def test_pause_and_cancel_from_another_program(shared: Vault, release: Release, root: Path) -> None:
    ended: list[object] = []
    gate = threading.Event()

    def begin() -> None:
        with Vault.open(root, subject="ana") as vault:
            try:
                ended.append(train(vault, release, HEALTH, long, settings=SETTINGS, progress=lambda *_: gate.set()))
            except Refused as error:
                ended.append(error)

    long = PrivacyPlan(**PLAN.to_dict() | {"steps": 10_000, "noise_multiplier": 300.0})
    for stop in (pause, lambda _: cancel(shared, "health")):
        gate.clear()
        thread = threading.Thread(target=begin)
        thread.start()
        assert gate.wait(20)
        assert [one.state for one in training_statuses(shared)] == ["running"]
        told = stop(shared)
        thread.join(20)
        assert not thread.is_alive()
    assert isinstance(ended[0], SessionResult)
    assert (ended[0].state, ended[0].steps) == ("paused", 10_000)
    assert isinstance(ended[1], Refused)
    assert (told.state, kinds(shared)) == ("failed", ["spend", "run_failed"])
    assert "cancelled" in told.message


def test_there_is_nothing_to_pause_or_cancel(shared: Vault, release: Release) -> None:
    for wrong in (lambda: pause(shared), lambda: cancel(shared, "health"), lambda: cancel(shared, "no")):
        with pytest.raises(NothingMatched):
            wrong()


def test_a_paused_one_is_cancelled(shared: Vault, release: Release) -> None:
    go(shared, release, steps=2)
    (one,) = training_statuses(shared)
    assert (one.state, one.step, one.steps, one.block) == ("paused", 2, 6, None)
    assert cancel(shared, one.run).state == "failed"
    assert kinds(shared) == ["spend", "run_failed"]


def test_bad_input_is_refused_before_anything_is_charged(shared: Vault, release: Release, tmp_path: Path) -> None:
    late = datetime.now(UTC) - timedelta(seconds=1)
    for wrong, error in (
        ({"deadline": late}, Refused),
        ({"deadline": datetime.now()}, UsageError),
        ({"memory": 1 << 20}, Refused),
    ):
        with pytest.raises(error):
            go(shared, release, limits=Limits(**wrong))
    with Vault.create(tmp_path / "empty", subject="ana") as empty, pytest.raises(Refused, match="no record") as caught:
        go(empty, release)
    assert caught.value.exit_code == 4
    with Vault.create(tmp_path / "sim", subject="ana", simulated=True) as made, pytest.raises(Refused):
        go(made, release)
    assert kinds(shared) == []
    assert not trainer.is_training_running(shared.root)


def test_a_client_trains_in_sessions(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client.open("ana", keystore="keyfile", release=release) as client:
        client.add(NOTES[0], topic="health")
        ended = client.train("health", PLAN, stop=After(2))
        assert (ended.state, ended.step) == ("paused", 2)
        assert [one.state for one in client.trainings()] == ["paused"]
        done = client.train("health", PLAN)
        assert [block.id for block in client.blocks.list()] == [done.block]
        with pytest.raises(NothingMatched):
            client.train("no-such-topic")
        with pytest.raises(NothingMatched):
            client.cancel("health")


def test_a_lower_memory_limit_gives_the_same_block(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float rounding, under noise that is the same; the micro-batch is a function of public sizes alone."""
    fixed_key(monkeypatch)
    found, sizes = [], []
    fit_footprint = footprint.fit_footprint
    monkeypatch.setattr(footprint, "fit_footprint", lambda *known: sizes.append(fit_footprint(*known)) or sizes[-1])
    spec, words = MemorySpec.single(release.spec.shape, 2, 4), release.tokenizer.get_vocab_size()
    least = footprint.fixed_bytes(spec, words) + 2 * footprint.per_sequence_bytes(spec, words, 16)
    for name, memory in (("low", least), ("high", least + (64 << 20))):
        with Vault.create(tmp_path / name, subject="ana") as vault:
            vectors = torch.eye(128).numpy()
            texts = [f"note {i} " + "of a visit " * 8 * i for i in range(5)]
            vault.add_records(
                [NewRecord(text, "health", (0, i % 4), vectors[i], release.digest) for i, text in enumerate(texts)]
            )
            ended = go(vault, release, limits=Limits(memory=memory))
            found.append(load(bytes(vault.block_rows(ended.block)))["rows"])
    assert [one.micro_batch for one in sizes] == [1, footprint.MOST]
    assert torch.allclose(*found, atol=1e-5)


def test_a_record_longer_than_the_limit_is_refused_before_it_is_charged(
    shared: Vault, release: Release, root: Path
) -> None:
    vector = torch.ones(128).numpy()
    with Vault.open(root, subject="ana") as vault:
        vault.add_records([NewRecord("a visit to the doctor " * 40_000, "health", (0, 0), vector, release.digest)])
    with pytest.raises(Refused, match="A record") as caught:
        go(shared, release, limits=Limits(memory=footprint.PROCESS + (24 << 20)))
    assert caught.value.exit_code == 4
    assert kinds(shared) == []
    assert training_statuses(shared) == []
