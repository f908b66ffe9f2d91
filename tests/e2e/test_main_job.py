"""The main job from text to receipt: what a run shows, that it repeats, and that nothing private lies in its folder."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedmem import erasure, paths
from fedmem.errors import FedmemError, UsageError, VerificationFailed
from fedmem.sim.folder import RunFolder, subject_of
from fedmem.sim.phases.erase import search_pieces
from fedmem.sim.phases.federated import open_journal
from fedmem.sim.run import check_guarantees, load_simulation, run_scenario
from fedmem.sim.summary import run_digest
from fedmem.vault.vault import Vault

MINI = Path(__file__).with_name("mini.toml")


def quiet(*_):
    """Say nothing."""


def folder_of(data):
    return RunFolder(paths.runs_dir() / data["name"])


def test_a_run_shows_what_it_promises(mini_run):
    assert set(mini_run["loss"]["public"]) >= {"anchor", "generic", "fetched", "wrong"}
    assert set(mini_run["loss"]["private"]) == {"without", "with", "after_erasure"}
    assert set(mini_run["epsilon"]) >= {"device", "device_reason", "blocks_max"}
    assert "unsafe_no_dp = true" in mini_run["epsilon"]["device_reason"]
    assert mini_run["epsilon"]["device"] is None
    assert 0 < mini_run["epsilon"]["blocks_max"] <= 8
    assert mini_run["bytes"]["per_device_round"] > 0
    assert len(mini_run["releases"]) == len(set(mini_run["releases"])) == 2
    assert [row["topic"] for row in mini_run["epsilon"]["blocks"]] == ["finance", "notes", "notes"]
    assert mini_run["peak_rss_mb"] > 0
    assert set(mini_run["seconds"]) >= {"total", "prepare", "pretrain", "cotrain", "rounds_1", "private", "rounds_2"}
    assert folder_of(mini_run).report.exists()


def test_erasure_leaves_the_loss_of_a_vault_that_never_held_the_block(mini_run):
    private = mini_run["loss"]["private"]
    assert private["with"] != private["without"]
    assert private["after_erasure"] == private["without"]


def test_the_receipt_verifies_and_a_changed_one_does_not(mini_run):
    found = mini_run["erasure"]
    assert (found["status"], found["verified"]) == ("completed", True)
    receipt, key = Path(found["receipt"]).read_bytes(), Path(found["public_key"]).read_bytes()
    assert erasure.receipt.verify(receipt, key)
    envelope = json.loads(receipt)
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAAA="
    with pytest.raises(VerificationFailed):
        erasure.receipt.verify(json.dumps(envelope).encode(), key)


def test_other_blocks_stay_and_answer(mini_run):
    folder = folder_of(mini_run)
    with Vault.open(folder.vault(0), subject=subject_of(0), write=False) as vault:
        assert [block.topic for block in vault.blocks()] == ["notes"]
        assert {block.release for block in vault.blocks()} == {mini_run["releases"][0]}
        assert vault.block_rows(vault.blocks()[0].id)


def test_no_private_text_in_the_clear_and_a_planted_one_is_found(mini_run):
    folder = folder_of(mini_run)
    wanted = search_pieces(load_simulation(folder, quiet))
    assert len(wanted) > 120
    assert mini_run["residue"] == {"before": 0, "after": 0}
    assert erasure.residue.scan(folder.root, wanted) == []
    planted = folder.state / "planted.log"
    planted.write_bytes(b"x" * 70_000 + next(iter(wanted.values())) + b"y")
    try:
        assert [hit.file for hit in erasure.residue.scan(folder.root, wanted)] == ["state/planted.log"]
    finally:
        planted.unlink()


def test_no_topic_name_of_the_erased_block_in_its_vault(mini_run):
    root = folder_of(mini_run).vault(0)
    assert erasure.residue.scan(root, {"topic": b"finance"}) == []


def test_same_seed_same_digest_whatever_the_number_of_workers(mini_run):
    again = run_scenario(str(MINI), corpus=None, seed=None, fresh=True, name="again", progress=quiet, workers=2)
    assert again["digest"] == mini_run["digest"]


@pytest.fixture(scope="module")
def changed_copy(mini_run, tmp_path_factory):
    """The finished run once more, to be changed."""
    folder = RunFolder(tmp_path_factory.mktemp("copy") / "mini")
    shutil.copytree(folder_of(mini_run).root, folder.root)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["private"]["blocks"][0].update(digest="0" * 64),
        lambda facts: facts["rounds_1"].update(release="0" * 64),
    ],
)
def test_the_digest_depends_on_blocks_and_releases(changed_copy, mini_run, change):
    facts = changed_copy.facts()
    sim = load_simulation(changed_copy, quiet)
    assert run_digest(sim, facts) == mini_run["digest"]
    change(facts)
    assert run_digest(sim, facts) != mini_run["digest"]


def test_the_digest_depends_on_wire_ledger_and_parameters(changed_copy, mini_run):
    sim, facts = load_simulation(changed_copy, quiet), changed_copy.facts()
    before = open_journal(sim, "memory").ledger
    before.append({"kind": "device-round", "round": 99})
    assert run_digest(sim, facts) != mini_run["digest"]
    sim.state("control.safetensors").write_bytes(b"other")
    shutil.copy(folder_of(mini_run).root / "ledger.jsonl", changed_copy.root / "ledger.jsonl")
    assert run_digest(sim, facts) != mini_run["digest"]


def offline(command):
    """The command in a network namespace of its own, with loopback up and every other address out of reach."""
    inside = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    reach = "import socket; socket.create_connection(('192.0.2.1', 9), 1)"
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow a network namespace")
    out = subprocess.run([*inside, sys.executable, "-c", reach], capture_output=True, text=True)
    assert "unreachable" in out.stderr
    return [*inside, *command]


def command(name, *options):
    return [sys.executable, "-m", "fedmem.cli.main", "sim", "run", str(MINI), "--name", name, "--json", *options]


def kill_when(name, ready):
    """Start the run in a process of its own, with workers, and kill it, without a chance to clean up, at `ready`."""
    started = command(name, "--workers", "2")
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_in_the_rounds_and_resumed_offline_gives_the_same_digest(mini_run, home):
    state = home / "runs" / "killed" / "state"
    kill_when("killed", (state / "rounds-memory" / "journal.jsonl").exists)
    done = json.loads((state / "phases.json").read_text())
    assert "cotrain" in done
    assert "rounds_1" not in done
    after = subprocess.run(offline(command("killed")), capture_output=True, text=True, env=os.environ)
    assert after.returncode == 0, after.stderr
    assert json.loads(after.stdout)["data"]["digest"] == mini_run["digest"]


@pytest.mark.parametrize("phase", ["private", "erase"])
def test_a_phase_that_breaks_off_goes_on_and_gives_the_same_digest(mini_run, monkeypatch, phase):
    """Private learning breaks off inside its second block, the erasure right before its point of no return."""
    target = {
        "private": "fedmem.vault.store.runs.Runs.finish",
        "erase": "fedmem.vault.crypto.key_table.KeyTable.rewrite",
    }[phase]
    module, owner, method = target.rsplit(".", 2)
    cls = getattr(importlib.import_module(module), owner)
    whole, calls = getattr(cls, method), []

    def broken(self, *args, **kwargs):
        calls.append(kwargs)
        if (phase == "private" and len(calls) == 2) or kwargs.get("erasure"):
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    arguments = {"corpus": None, "seed": None, "fresh": False, "name": f"broken-{phase}", "progress": quiet}
    with monkeypatch.context() as patch:
        patch.setattr(cls, method, broken)
        with pytest.raises(KeyboardInterrupt):
            run_scenario(str(MINI), **arguments)
    assert phase not in RunFolder(paths.runs_dir() / f"broken-{phase}").facts()
    data = run_scenario(str(MINI), **arguments)
    assert data["digest"] == mini_run["digest"]
    assert data["erasure"]["verified"]
    with Vault.open(folder_of(data).vault(0), subject=subject_of(0), write=False) as vault:
        assert not vault.unfinished_erasures()


def test_a_failing_device_stops_the_run_and_leaves_its_round_open(mini_run, monkeypatch):
    arguments = {"corpus": None, "seed": None, "fresh": False, "name": "failing", "progress": quiet}

    def fail(*_, **__):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("fedmem.training.local.Federated.train", fail)
        for workers in (0, 2):
            with pytest.raises(FedmemError, match="MemoryError"):
                run_scenario(str(MINI), **arguments, workers=workers)
    assert run_scenario(str(MINI), **arguments)["digest"] == mini_run["digest"]


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("residue", "after", 1, "in the clear"),
        ("erasure", "verified", False, "does not verify"),
        ("loss", "private", {"without": 1.0, "after_erasure": 0.5}, "still answers"),
    ],
)
def test_a_broken_promise_fails_the_run(mini_run, part, key, value, said):
    broken = mini_run | {part: mini_run[part] | {key: value}}
    check_guarantees(mini_run)
    with pytest.raises(VerificationFailed, match=said):
        check_guarantees(broken)


def test_a_finished_run_is_not_run_again(mini_run):
    assert run_scenario(str(MINI), corpus=None, seed=None, fresh=False, name="mini", progress=quiet) == mini_run


def test_a_name_that_is_taken_by_other_inputs_is_refused(mini_run):
    with pytest.raises(UsageError, match="other inputs"):
        run_scenario(str(MINI), corpus=None, seed=8, fresh=False, name="mini", progress=quiet)


@pytest.mark.parametrize("name", ["../x", "/etc", "", "a/b", ".hidden"])
def test_a_name_that_is_no_name_is_refused(home, name):
    with pytest.raises(UsageError, match="letters, digits"):
        run_scenario(str(MINI), corpus=None, seed=None, fresh=False, name=name, progress=quiet)
