"""The main job from text to receipt: what a run shows, that it repeats, and that nothing private lies in its folder."""

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
from fedmem.errors import UsageError, VerificationFailed
from fedmem.sim.folder import RunFolder, subject
from fedmem.sim.phases.erase import needles
from fedmem.sim.run import run, simulation
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
    with Vault.open(folder.vault(0), subject=subject(0), write=False) as vault:
        assert [block.topic for block in vault.blocks()] == ["notes"]
        assert {block.release for block in vault.blocks()} == {mini_run["releases"][0]}
        assert vault.block_rows(vault.blocks()[0].id)


def test_no_private_text_in_the_clear_and_a_planted_one_is_found(mini_run):
    folder = folder_of(mini_run)
    wanted = needles(simulation(folder, quiet))
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


def test_same_seed_same_digest(mini_run):
    again = run(str(MINI), corpus=None, seed=None, fresh=True, name="again", progress=quiet)
    assert again["digest"] == mini_run["digest"]
    other = folder_of(again).root
    shutil.rmtree(other)


def offline(command):
    """The command in a network namespace of its own with loopback up, where the machine allows it."""
    inside = ["unshare", "-rn", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "sh"]
    allowed = shutil.which("unshare") and subprocess.run([*inside, "true"], capture_output=True).returncode == 0
    return [*inside, *command] if allowed else command


def test_killed_in_the_rounds_and_resumed_offline_gives_the_same_digest(mini_run, home):
    command = [sys.executable, "-m", "fedmem.cli.main", "sim", "run", str(MINI), "--name", "killed", "--json"]
    log = home / "runs" / "killed" / "state" / "rounds-memory" / "journal.jsonl"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 300
    while not log.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    state = json.loads((home / "runs" / "killed" / "state" / "phases.json").read_text())
    assert "cotrain" in state
    assert "rounds_1" not in state
    done = subprocess.run(offline(command), capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["digest"] == mini_run["digest"]


def test_a_finished_run_is_not_run_again(mini_run):
    assert run(str(MINI), corpus=None, seed=None, fresh=False, name="mini", progress=quiet) == mini_run


def test_a_name_that_is_taken_by_other_inputs_is_refused(mini_run):
    with pytest.raises(UsageError, match="other inputs"):
        run(str(MINI), corpus=None, seed=8, fresh=False, name="mini", progress=quiet)
