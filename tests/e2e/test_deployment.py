"""The product as deployed: two vaults, `fedmem client run` for each, a SuperLink, SuperNodes, and `flwr run`.

Everything is on this machine, and every program is the one that ships.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmem import Client
from fedmem.coordinator.journal import Journal
from fedmem.federation.local_training import load_federated_part
from fedmem.federation.runtime import DEVICE
from fedmem.federation.terms import Agreement
from fedmem.training.release import Release
from tests.e2e.flower import BIN, ROOT, environment, free_port, superlink

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("flower-supernode", path=BIN) is None, reason="flwr is not installed"),
]

TERMS = """
release = "{release}"
parts = ["anchor", "level-1", "generic"]

[plan]
population = 2
rounds = 2
clip = 10.0
unsafe_no_dp = true
unsafe_reason = "two devices are too few to hide in"
run = "test-1"

[rounds]
seed = 5
steps = 2
batch = 2
learning_rate = 3e-4
memory_learning_rate = 1e-3
deadline = {deadline}

[local]
length = 48
"""
CONSENT = 'schema = "fedmem.policy/1"\nname = "consent"\n[federation]\nallow_no_dp = true\n'
SHARED = ["Bern lies on the Aare.", "The plum tree flowers in April.", "Rivers carry sand to the sea."]
PRIVATE = ["My diagnosis is diabetes; the doctor prescribed insulin.", "My IBAN is CH93 0076 2011 6238 5295 7."]


def fill(subject: str) -> None:
    with Client.open(subject, keystore="keyfile") as client:
        placed = [client.add(f"{text} ({subject})").decision.placement for text in SHARED]
        placed += [client.add(text).decision.placement for text in PRIVATE]
        client.add("I owe the bank 400 francs.", topic="finance")
    assert placed == ["shared"] * 3 + ["private"] * 2


def fedmem(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedmem.cli.main", *words]


def egress(subject: str, known: dict[str, str]) -> list[dict[str, Any]]:
    words = fedmem("client", "egress", "--subject", subject, "--json")
    done = subprocess.run(words, env=known, capture_output=True, text=True, timeout=60, check=True)
    entries: list[dict[str, Any]] = json.loads(done.stdout)["data"]["entries"]
    return entries


def line_of(log: Path, word: str, process: "subprocess.Popen[bytes]") -> str:
    """The first line of a log with this word in it."""
    deadline = time.monotonic() + 60
    while not (lines := [line for line in log.read_text().splitlines() if word in line]):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return lines[0]


@contextlib.contextmanager
def program(words: list[str], known: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as file:
        process = subprocess.Popen(words, env=known, stdout=file, stderr=file, cwd=log.parent)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(40)


def device(subject: str, release: Path, terms: Path, *options: str) -> list[str]:
    consent = terms.with_name("consent.toml")
    consent.write_text(CONSENT)
    words = ("--release", str(release), "--terms", str(terms), "--policy", str(consent))
    return fedmem("client", "run", "--subject", subject, *words, *options)


def rounds(known: dict[str, str], release: Path, terms: Path, out: Path, number: int) -> list[tuple[int, int]]:
    """Run rounds with `flwr run`; (round, replies that counted) of each."""
    config = f"release='{release}' terms='{terms}' out='{out}' devices=2 rounds={number}"
    words = [str(BIN / "flwr"), "run", str(ROOT), "--stream", "--run-config", config]
    done = subprocess.run(words, env=known, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = [(row.round, row.counted) for row in Journal(out).traffic()]
    assert counted, done.stdout + done.stderr
    return counted


def modules(folder: Path, name: str) -> list[set[str]]:
    """Modules of fedmem that each process of a program had loaded at its end."""
    return [set(path.read_text().split()) for path in folder.glob(f"calls.{name}.*")]


def private(loaded: set[str]) -> set[str]:
    return {name for name in loaded if name.startswith(("fedmem.vault", "fedmem.policy", "fedmem.device"))}


def test_two_devices_take_part_in_rounds_and_see_what_left_them(
    mini_run: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    release = max((home / "runs" / "mini" / "releases").glob("*/release.json"), key=os.path.getmtime).parent
    terms, known = tmp_path / "terms.toml", environment(tmp_path, home)
    terms.write_text(TERMS.format(release=release.name, deadline=50))
    for subject in ("ana", "ben"):
        fill(subject)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(superlink(known, tmp_path))
        link = ("--superlink", f"127.0.0.1:{port}", "--insecure")
        own = ("--port", str(free_port()))
        logs = {name: tmp_path / f"{name}.log" for name in ("ana", "ben", "node")}
        ana = stack.enter_context(program(device("ana", release, terms, *link, *own, "--json"), known, logs["ana"]))
        ben = stack.enter_context(program(device("ben", release, terms, "--no-supernode"), known, logs["ben"]))
        # Ben's operator starts the SuperNode, with what the vault process says.
        folder = line_of(logs["ben"], f"{DEVICE}=", ben).split(f"{DEVICE}=")[1]
        node = [
            str(BIN / "flower-supernode"), *link, "--isolation", "subprocess", "--host", "127.0.0.1",
            "--port", str(free_port()),
        ]  # fmt: skip
        without_home = {name: value for name, value in known.items() if name != "FEDMEM_HOME"}
        stack.enter_context(program(node, {**without_home, DEVICE: folder}, logs["node"]))

        assert rounds(known, release, terms, tmp_path / "out", 2) == [(1, 2), (2, 2)]
        entries = {subject: egress(subject, known) for subject in ("ana", "ben")}
        nbytes = sum(4 * array.size for array in load_federated_part(release, Agreement.load(terms)).params().values())
        for lines in entries.values():
            assert [(line["message"], line["round"], line["bytes"]) for line in lines] == [
                ("train.anchor", 1, nbytes), ("train.anchor", 2, nbytes),
            ]  # fmt: skip
        digests = {line["digest"] for lines in entries.values() for line in lines}
        assert len(digests) == 4  # each device trained, and on its own records
        moved = load_file(tmp_path / "out" / "checkpoints" / "round-000002.safetensors")
        start = load_federated_part(release, Agreement.load(terms)).params()
        assert any((moved[name] != start[name]).any() for name in start)
        assert all(np.isfinite(array).all() for array in moved.values())

        facing = modules(tmp_path, "flwr-clientapp")
        assert len(facing) == 4  # a process for each message
        assert all("fedmem.federation.local_training" in loaded and not private(loaded) for loaded in facing)

        ben.send_signal(signal.SIGKILL)
        ben.wait(10)
        # Its node is connected still, and silent: the round waits for it until the deadline, and closes.
        assert rounds(known, release, terms, tmp_path / "again", 1) == [(1, 1)]
        assert [len(egress(subject, known)) for subject in ("ana", "ben")] == [3, 2]

        ana.send_signal(signal.SIGTERM)
        assert ana.wait(40) == 0, logs["ana"].read_text()
        assert '"released": 3' in logs["ana"].read_text()
    (holding,) = [set(path.read_text().split()) for path in tmp_path.glob(f"calls.*.{ana.pid}")]
    assert "fedmem.vault.vault" in holding  # the negative control
    assert not {name for name in holding if name.split(".")[0] in ("flwr", "torch")}
    assert not (tmp_path / "calls").exists(), (tmp_path / "calls").read_text()
    assert Release.load(release).digest == release.name
