"""The doctor: its checks can fail, and a failure has its exit code."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))


def by_name(result_stdout: str) -> dict[str, str]:
    return {check["name"]: check["state"] for check in json.loads(result_stdout)["data"]["checks"]}


def test_a_sound_machine(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    states = by_name(result.stdout)
    assert result.exit_code == 0
    assert "failed" not in states.values()
    assert set(states) >= {
        "platform",
        "keystore",
        "vaults",
        "key slots",
        "sqlite",
        "core dumps",
        "swap",
        "synced folder",
        "free space",
    }
    assert list(tmp_path.iterdir()) == []


def test_open_slots_fail(tmp_path: Path) -> None:
    slots = tmp_path / "home" / "slots"
    slots.mkdir(parents=True, mode=0o755)
    slots.chmod(0o755)
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 12
    assert by_name(result.stdout)["key slots"] == "failed"
    assert json.loads(result.stdout)["data"]["passed"] is False
    slots.chmod(0o700)
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 0
