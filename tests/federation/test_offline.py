"""I10: no telemetry, no update check, no socket."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fedmem.federation.offline import SWITCHES

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
