"""The bundle that `flwr run` sends, and one federation with the same bytes on every backend, Flower's engine included.

Nothing of it reaches another machine.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import Patience, run_rounds
from fedmem.federation.client_app import make_client_app
from fedmem.federation.offline import RAY_SWITCHES, SWITCHES
from fedmem.sim import scenario
from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder
from fedmem.sim.inproc_grid import InProcessGrid
from fedmem.sim.phases import central, federated
from tests.e2e.flower import BIN, ROOT, environment
from tests.e2e.replay import Replay

MINI = Path(__file__).with_name("mini.toml")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("flwr", path=BIN) is None, reason="flwr is not installed"),
]


@pytest.fixture
def known(tmp_path: Path) -> dict[str, str]:
    return {**environment(tmp_path, tmp_path / "fedmem"), **RAY_SWITCHES}


def test_a_call_to_another_machine_would_be_noticed(known: dict[str, str], tmp_path: Path) -> None:
    code = "import socket; socket.create_connection(('telemetry.invalid', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "look up telemetry.invalid" in (tmp_path / "calls").read_text()


def test_the_bundle_holds_the_two_apps_and_no_fedmem(known: dict[str, str], tmp_path: Path) -> None:
    copy = tmp_path / "fedmem-app"
    for name in ("server", "client", "fedmem"):
        shutil.copytree(ROOT / name, copy / name)
    shutil.copy2(ROOT / "pyproject.toml", copy)
    done = subprocess.run(
        [str(BIN / "flwr"), "build"], cwd=copy, env=known, capture_output=True, text=True, timeout=60, check=False
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
    for work in (central.prepare_phase, central.pretrain_phase, central.cotrain_phase):
        work(sim)
    release = federated._release(sim, federated.load_arm(sim, "memory"))
    return sim.folder.releases / release.digest


def files(root: Path) -> dict[str, bytes]:
    """Journal, ledger and checkpoints, which hold the digests of all messages and parameters."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def on_this_machine(replay: Replay, root: Path, workers: int) -> dict[str, bytes]:
    devices = {index: replay.device(index) for index in range(replay.devices)}
    clients = {index: make_client_app(lambda _, d=device: d) for index, device in devices.items()}  # type: ignore[misc]
    with InProcessGrid(clients, workers=workers) as grid:
        made = replay.coordinator()
        run_rounds(grid, made, Journal(root), until=replay.rounds, patience=Patience(nodes=replay.devices))
    return files(root)


def on_ray(release: Path, devices: int, rounds: int, out: Path, known: dict[str, str]) -> dict[str, bytes]:
    out.mkdir()
    code = "from tests.e2e.ray_fleet import main; main()"
    command = [sys.executable, "-c", code, str(release), str(devices), str(rounds), str(out)]
    done = subprocess.run(
        command, env=known, input="\n" * rounds, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return files(out / "journal")


def test_one_federation_has_the_same_bytes_on_every_backend(known: dict[str, str], tmp_path: Path) -> None:
    release = released(tmp_path / "run")
    replay = Replay(release, DEVICES, ROUNDS)
    want = on_this_machine(replay, tmp_path / "inproc", 0)
    checkpoints = [data for name, data in want.items() if name.startswith("checkpoints")]
    assert len(set(checkpoints)) == ROUNDS
    assert on_this_machine(replay, tmp_path / "workers", 2) == want
    # The switches are not in the environment: what the program sets must reach Ray's processes.
    bare = {name: value for name, value in known.items() if name not in {*SWITCHES, *RAY_SWITCHES}}
    bare |= {"FLWR_TELEMETRY_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "1"}
    assert on_ray(release, DEVICES, ROUNDS, tmp_path / "ray", bare) == want
    processes = [json.loads(path.read_text()) for path in (tmp_path / "ray").glob("process-*.json")]
    assert processes == [{**SWITCHES, "flower": "0"}] * len(processes) != []
    assert not (tmp_path / "calls").exists(), (tmp_path / "calls").read_text()
