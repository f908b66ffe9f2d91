"""The file layer: old bytes or new bytes, at every operation, and errors that say what to do."""

import hashlib
import os
import stat
from pathlib import Path

import pytest

from fedmem.errors import NothingMatched, StorageError
from fedmem.storage.files import Files


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("kind", ["cut", "full"])
def test_replace_is_old_or_new(faults, tmp_path: Path, kind: str, at: int) -> None:
    target = tmp_path / "file"
    faults.replace(target, b"old")
    faults.arm(kind, at)
    try:
        faults.replace(target, b"new")
        acknowledged = True
    except (StorageError, faults.PowerCut):
        acknowledged = False
    assert target.read_bytes() in ((b"new",) if acknowledged else (b"old", b"new"))
    assert acknowledged or at < 4
    faults.arm("cut", None)
    faults.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]


def test_full_disk_leaves_no_temporary_and_says_what_to_do(faults, tmp_path: Path) -> None:
    faults.arm("full", 0)
    with pytest.raises(StorageError, match="free some space") as caught:
        faults.replace(tmp_path / "file", b"new")
    assert caught.value.exit_code == 11
    assert list(tmp_path.iterdir()) == []


def test_destroy_overwrites_before_it_unlinks(faults, tmp_path: Path) -> None:
    target = tmp_path / "slot"
    target.write_bytes(b"s" * 32)
    kept: list[bytes] = []
    faults.watch = lambda operation, path: kept.append(path.read_bytes()) if operation == "unlink" else None
    faults.destroy(target)
    assert kept == [bytes(32)]
    assert not target.exists()


def test_missing_file_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(NothingMatched):
        Files().read(tmp_path / "absent")


def test_files_are_for_this_user_only(tmp_path: Path) -> None:
    Files().replace(tmp_path / "file", b"x")
    Files().make_folder(tmp_path / "folder")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o700


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def sync(handle: int) -> None:
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}")

    replace = os.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), replace(old, new)))
    Files().replace(tmp_path / "file", b"four")
    assert order == ["file of 4", "rename", "folder"]
    order.clear()
    Files().destroy(tmp_path / "file")
    assert order == ["file of 4", "folder"]


def test_folders_are_made_for_this_user_only_up_to_the_first_that_is_there(tmp_path):
    Files().make_folder(tmp_path / "slots" / "inner" / "deep")
    made = [tmp_path / "slots", tmp_path / "slots" / "inner", tmp_path / "slots" / "inner" / "deep"]
    assert [folder.stat().st_mode & 0o777 for folder in made] == [0o700] * 3


def test_pieces_are_one_durable_file_and_its_digest(faults, tmp_path: Path) -> None:
    written = faults.write_pieces(tmp_path / "new", iter([b"one", memoryview(b"two"), b""]))
    assert (tmp_path / "new").read_bytes() == b"onetwo"
    assert written == hashlib.sha256(b"onetwo").hexdigest() == faults.digest(tmp_path / "new")
    assert faults.seen == ["write", "fsync"]
    faults.rename(tmp_path / "new", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["final"]


def test_pieces_on_a_full_disk_are_a_storage_error(faults, tmp_path: Path) -> None:
    faults.arm("full", 1)
    with pytest.raises(StorageError, match="full"):
        faults.write_pieces(tmp_path / "new", [b"one"])
