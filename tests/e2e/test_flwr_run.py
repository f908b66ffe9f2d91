"""Flower's own simulation engine: `flwr run` on this repository, and one federation with the same bytes everywhere.

Nothing of it reaches another machine.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import load_file

from fedmem.federation import apps
from fedmem.federation.apps import Patience
from fedmem.federation.grid import InProcessGrid
from fedmem.federation.journal import Journal
from fedmem.federation.switches import RAY_SWITCHES, SWITCHES
from fedmem.sim import run, scenario
from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder
from fedmem.sim.phases import central, federated
from fedmem.sim.replay import Replay
from tests.e2e import ray_fleet

ROOT = Path(__file__).resolve().parents[2]
MINI = Path(__file__).with_name("mini.toml")
BIN = Path(sys.executable).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("flwr", path=BIN) is None, reason="flwr is not installed"),
]


# Loaded by every Python process that the test starts: notes each attempt to reach another machine.
WATCH = """
import os, socket

def note(what):
    with open(os.environ["FEDMEM_TEST_CALLS"], "a") as file:
        file.write(f"{what}\\n")

def outside(host):
    return host and not str(host).startswith(("127.", "0.0.0.0", "::1", "localhost", OWN, socket.gethostname()))

def address():
    # Where packets would leave from; a datagram socket that connects sends none. Ray asks in the same way.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            connect(probe, ("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return "127."

class Socket(socket.socket):
    def connect(self, to):
        if self.family != socket.AF_UNIX and self.type == socket.SOCK_STREAM and outside(to[0]):
            note(f"connect {to}")
        return super().connect(to)

def getaddrinfo(host, *args, **kwargs):
    if outside(host):
        note(f"look up {host}")
    return look_up(host, *args, **kwargs)

connect, look_up = socket.socket.connect, socket.getaddrinfo
OWN = address()
socket.socket, socket.getaddrinfo = Socket, getaddrinfo
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "fedmem"))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    own = {
        "FLWR_HOME": str(tmp_path / "flwr"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path / 'watch'}{os.pathsep}{ROOT}",
        "FEDMEM_TEST_CALLS": str(tmp_path / "calls"),
    }
    return {**os.environ, **SWITCHES, **RAY_SWITCHES, **own, "OMP_NUM_THREADS": "1"}


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture
def superlink(environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """A SuperLink of our own, so that the test ends it; `flwr run` would leave one running."""
    port = free_port()
    home = Path(environment["FLWR_HOME"])
    home.mkdir()
    config = f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(config)
    command = [
        str(BIN / "flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with (tmp_path / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
        try:
            deadline = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, (tmp_path / "superlink.log").read_text()
                assert time.monotonic() < deadline, "the SuperLink did not start"
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.usefixtures("superlink")
def test_flwr_run_trains_the_newest_release_for_a_round(environment: dict[str, str], tmp_path: Path) -> None:
    run.run(str(MINI), corpus=None, seed=None, fresh=False, name=None, progress=lambda *_: None)
    out = tmp_path / "out"
    command = [
        str(BIN / "flwr"), "run", str(ROOT), "--stream", "--run-config", f"out='{out}'",
        "--federation-config", "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    journal = Journal(out)
    assert [(row.round, row.counted) for row in journal.traffic()] == [(1, 2)], done.stdout
    assert [event["round"] for event in journal.ledger.entries()] == [1]
    moved = load_file(out / "checkpoints" / "round-000001.safetensors")
    start = Replay.of({"release": "", "devices": 2, "rounds": 1}).part.params()
    assert moved.keys() == start.keys()
    assert any((moved[name] != start[name]).any() for name in start)
    assert all(np.isfinite(array).all() for array in moved.values())
    calls = Path(environment["FEDMEM_TEST_CALLS"])
    assert not calls.exists(), calls.read_text()


def test_a_call_to_another_machine_would_be_noticed(environment: dict[str, str]) -> None:
    code = "import socket; socket.create_connection(('telemetry.invalid', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "look up telemetry.invalid" in Path(environment["FEDMEM_TEST_CALLS"]).read_text()


def test_the_bundle_holds_the_two_apps_and_no_fedmem(environment: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "fedmem-app"
    for name in ("server", "client", "fedmem"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy2(ROOT / "pyproject.toml", copy)
    done = subprocess.run(
        [str(BIN / "flwr"), "build"], cwd=copy, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    bundle = next(copy.glob("*.fab"))
    names = set(zipfile.ZipFile(bundle).namelist())
    apps = {f"{side}/{file}.py" for side in ("server", "client") for file in ("__init__", "app")}
    assert names == {"pyproject.toml", ".info/CONTENT", *apps}


DEVICES, ROUNDS = 5, 3
NOISY = {"sampling_rate": 0.75, "noise_multiplier": 0.3, "unsafe_no_dp": False, "unsafe_reason": ""}


def released(root: Path) -> Path:
    """A release of the mini scenario for more devices and with noise, without private records; not yet federated."""
    chosen = scenario.load(str(MINI))
    public, terms = replace(chosen.public, devices=DEVICES), replace(chosen.federation, **NOISY)
    chosen = replace(chosen, public=public, federation=terms, private=[])
    sim = Simulation(RunFolder(root), chosen, 7, None, lambda *_: None)
    sim.folder.create({"id": "0", "scenario": chosen.to_dict(), "seed": 7, "corpus": None})
    for work in (central.prepare, central.pretrain_phase, central.cotrain_phase):
        work(sim)
    release = federated._release(sim, federated.federated(sim, "memory"))
    return sim.folder.releases / release.digest


def files(root: Path) -> dict[str, bytes]:
    """Journal, ledger and checkpoints, which hold the digests of all messages and parameters."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def on_this_machine(replay: Replay, root: Path, workers: int) -> dict[str, bytes]:
    devices = {index: replay.device(index) for index in range(replay.devices)}
    clients = {index: apps.make_client_app(lambda _, d=device: d) for index, device in devices.items()}  # type: ignore[misc]
    with InProcessGrid(clients, workers=workers) as grid:
        made = ray_fleet.coordinator(replay)
        apps.run_rounds(grid, made, Journal(root), until=replay.rounds, patience=Patience(nodes=replay.devices))
    return files(root)


def on_ray(release: Path, devices: int, rounds: int, out: Path, environment: dict[str, str]) -> dict[str, bytes]:
    out.mkdir()
    code = "from tests.e2e.ray_fleet import main; main()"
    command = [sys.executable, "-c", code, str(release), str(devices), str(rounds), str(out)]
    done = subprocess.run(
        command, env=environment, input="\n" * rounds, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return files(out / "journal")


def test_one_federation_has_the_same_bytes_on_every_backend(environment: dict[str, str], tmp_path: Path) -> None:
    release = released(tmp_path / "run")
    replay = Replay(release, DEVICES, ROUNDS)
    want = on_this_machine(replay, tmp_path / "inproc", 0)
    checkpoints = [data for name, data in want.items() if name.startswith("checkpoints")]
    assert len(set(checkpoints)) == ROUNDS
    assert on_this_machine(replay, tmp_path / "workers", 2) == want
    # The switches are not in the environment: what the program sets must reach Ray's processes.
    bare = {name: value for name, value in environment.items() if name not in {*SWITCHES, *RAY_SWITCHES}}
    bare |= {"FLWR_TELEMETRY_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "1"}
    assert on_ray(release, DEVICES, ROUNDS, tmp_path / "ray", bare) == want
    processes = [json.loads(path.read_text()) for path in (tmp_path / "ray").glob("process-*.json")]
    assert processes == [{**SWITCHES, "flower": "0"}] * len(processes) != []
    assert not (tmp_path / "calls").exists(), (tmp_path / "calls").read_text()
