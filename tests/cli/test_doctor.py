"""The doctor: its checks can fail, and a failure has its exit code."""

import json
import os
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main
from fedmem.sdk import doctor


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


def test_a_folder_of_another_user_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert doctor.check_folder("vaults", tmp_path, "failed").state == "failed"


def test_sqlite_that_keeps_no_promise_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "pragma", lambda *_: 0)
    assert doctor.check_sqlite(tmp_path).state == "failed"


def test_sqlite_that_cannot_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise sqlite3.OperationalError

    monkeypatch.setattr(doctor, "pragma", refuse)
    assert doctor.check_sqlite(tmp_path).state == "failed"


@pytest.mark.parametrize(("kind", "state"), [("ext4", "ok"), ("btrfs", "warning"), ("nfs4", "failed")])
def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str) -> None:
    monkeypatch.setattr(doctor, "filesystem", lambda _: kind)
    assert doctor.check_filesystem(tmp_path).state == state


def test_synced_folders(tmp_path: Path) -> None:
    assert not doctor.synced(tmp_path)
    assert doctor.synced(Path("/home/a/OneDrive - Work/vaults"))
    (tmp_path / ".stfolder").mkdir()
    assert doctor.synced(tmp_path / "deep" / "vaults")


@pytest.mark.parametrize(("priority", "real"), [(0, False), (-1, False), (0.5, False), (5, True)])
def test_only_a_guarded_keyring_counts(monkeypatch: pytest.MonkeyPatch, priority: float, real: bool) -> None:
    import keyring

    backend = type("Backend", (), {"priority": priority})()
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    assert doctor.has_keyring() is real
