"""I10: no telemetry, no update check, no socket."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import Patience, run_rounds
from fedmem.errors import Refused, RemoteError
from fedmem.federation import flower
from fedmem.federation.flower import require_own_installation
from fedmem.federation.offline import SWITCHES
from fedmem.sim.inproc_grid import InProcessGrid

PROBE = """
import sys
import fedmem.sim.inproc_grid
from flwr.supercore import telemetry, update_check
import os
print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ["FLWR_DISABLE_UPDATE_CHECK"], os.environ["HF_HUB_OFFLINE"],
      os.environ["RAY_USAGE_STATS_ENABLED"], os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"])
print(int("ray" in sys.modules), int("torch" in sys.modules))
"""


def test_flower_finds_its_switches_off_whatever_the_environment_said() -> None:
    loud = {"FLWR_TELEMETRY_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-W", "error", "-c", PROBE]
    done = subprocess.run(command, env={**os.environ, **loud}, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["0 1 1 0 1", "0 0"]


def test_the_rules_of_a_federation_load_no_flower_and_no_torch() -> None:
    modules = [
        f"federation.{name}" for name in ("wire", "fixedpoint", "device_dp", "rounds", "port", "device", "offline")
    ]
    code = f"import sys; {'; '.join(f'import fedmem.{m}' for m in [*modules, 'coordinator.journal'])}; " + (
        "print([m for m in ('flwr', 'torch', 'ray', 'dp_accounting', 'socket') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_process_that_loaded_flower_with_telemetry_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flower.require_offline()
    monkeypatch.setattr(flower.telemetry, "FLWR_TELEMETRY_ENABLED", "1")
    with pytest.raises(Refused, match="FLWR_TELEMETRY_ENABLED=0"):
        flower.require_offline()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_in_process_federation_opens_no_socket(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", opened)
    monkeypatch.setattr(socket, "create_connection", opened)
    made = toy(workers=workers)
    with made.grid() as grid:
        traffic, _, _ = made.run(until=2, grid=grid)
    assert [row.counted for row in traffic] == [4, 4]


def test_switches_are_strings_that_mean_off() -> None:
    assert set(SWITCHES.values()) == {"0", "1"}
    assert all(os.environ[name] == value for name, value in SWITCHES.items())


def test_a_federation_without_devices_ends_with_a_sentence(toy: Callable[..., Any]) -> None:
    made = toy()
    with pytest.raises(RemoteError, match="Start the others"):
        run_rounds(
            InProcessGrid({}), made.coordinator(), Journal(made.root), until=1, patience=Patience(connect=0, poll=0)
        )


def test_a_bundle_that_carries_its_own_fedmem_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "flwr" / "apps" / "some.app.1.0.0.abc"
    app = str(bundle / "client" / "app.py")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    require_own_installation(app)
    monkeypatch.setattr(flower.fedmem, "__file__", str(bundle / "fedmem" / "__init__.py"))
    with pytest.raises(Refused, match="carries its own"):
        require_own_installation(app)
