"""The checks of the doctor: each can fail."""

import os
import platform
import sqlite3
from pathlib import Path

import pytest

from fedmem.sdk import doctor


def test_a_system_that_is_not_tested_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_platform().state == "ok"
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert doctor.check_platform().state == "warning"


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


FILE_SYSTEMS = [
    ("ext4", "ok"),
    ("", "ok"),
    ("btrfs", "warning"),
    ("zfs", "warning"),
    ("overlay", "warning"),
    ("nfs4", "failed"),
    ("fuse.sshfs", "failed"),
]


@pytest.mark.parametrize(("kind", "state"), FILE_SYSTEMS)
def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str) -> None:
    monkeypatch.setattr(doctor, "filesystem", lambda _: kind)
    assert doctor.check_filesystem(tmp_path).state == state
    states = {check.name: check.state for check in doctor.examine(tmp_path)}
    assert (states["file system"], states["file system of key slots"]) == (state, state)


def test_the_mount_on_top_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mounts(*lines: str) -> str:
        monkeypatch.setattr(Path, "read_text", lambda _: "".join(f"dev {line} rw 0 0\n" for line in lines))
        return doctor.filesystem(tmp_path)

    here = str(tmp_path.parent).replace(" ", "\\040")
    assert mounts("/ ext4", f"{here} btrfs", f"{here}/other zfs") == "btrfs"
    assert mounts("/ ext4", f"{here} btrfs", f"{here} overlay") == "overlay"
    assert mounts("/nowhere ext4") == ""


def test_slots_in_a_synced_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "Dropbox" / "fedmem"))
    states = {check.name: check.state for check in doctor.examine(tmp_path / "vaults")}
    assert (states["synced folder"], states["synced key slots"]) == ("ok", "warning")


def test_slots_in_one_tree_with_vaults_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for root in ("home/vaults", "home", "home/slots/vaults", "link/vaults"):
        assert doctor.check_apart(tmp_path / root).state == "warning"
    assert doctor.check_apart(tmp_path / "elsewhere" / "vaults").state == "ok"


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(size: int) -> str:
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": size})())
        return doctor.check_space(tmp_path).state

    assert [free(1 << 20), free(1 << 30), free(1 << 40)] == ["failed", "warning", "ok"]


def test_swap_and_piped_core_dumps_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    table = "Filename Type Size Used Priority\n"
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: table)
    assert doctor.check_swap().state == "ok"
    monkeypatch.setattr(Path, "read_text", lambda _: table + "/swapfile file 1 0 -2\n")
    assert doctor.check_swap().state == "warning"
    monkeypatch.setattr(Path, "read_text", lambda _: "|/usr/lib/systemd/systemd-coredump")
    assert doctor.check_core_dumps().state == "warning"
    monkeypatch.setattr(Path, "read_text", lambda _: "core")
    assert doctor.check_core_dumps().state == "ok"


@pytest.mark.parametrize(("priority", "real"), [(0, False), (-1, False), (0.5, False), (5, True)])
def test_only_a_guarded_keyring_counts(monkeypatch: pytest.MonkeyPatch, priority: float, real: bool) -> None:
    import keyring

    backend = type("Backend", (), {"priority": priority})()
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    assert doctor.has_keyring() is real
