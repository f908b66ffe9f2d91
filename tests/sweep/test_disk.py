"""The disk that forgets, and the process that is stopped: each forgets and stops what it should, and nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmem.storage.files import Files
from tests.sweep.disk import DROPPED, KEPT, TORN, Cut, recorded, states, tree, write_state
from tests.sweep.tracer import works

Work = Callable[[Files, Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds one file."""
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "a").write_bytes(b"old bytes")
    return tmp_path / "w"


def contents(cut: Cut) -> set[tuple[tuple[str, bytes | None], ...]]:
    """Everything that may lie on the disk after a cut, temporary files aside."""
    found = (tree(cut, kept) for kept in states(cut, 100))
    return {tuple(sorted((str(p), c) for p, c in one.items() if not p.name.endswith(".tmp"))) for one in found}


def after(folder: Path, work: Work) -> set[tuple[tuple[str, bytes | None], ...]]:
    """What may be there once `work` has returned."""
    with recorded(folder) as disk:
        work(disk.files, folder)
    return contents(disk.cuts[-1])


def test_a_replaced_file_is_old_or_new_at_every_moment_and_new_at_the_end(folder: Path) -> None:
    with recorded(folder) as disk:
        disk.files.replace(folder / "a", b"new bytes, and more of them")
    old, new = (("a", b"old bytes"),), (("a", b"new bytes, and more of them"),)
    assert set().union(*(contents(cut) for cut in disk.cuts)) == {old, new}
    assert contents(disk.cuts[-1]) == {new}


def test_without_its_syncs_nothing_is_sure(folder: Path) -> None:
    def careless(files: Files, folder: Path) -> None:
        (folder / "t").write_bytes(b"new bytes")
        os.replace(folder / "t", folder / "a")

    found = after(folder, careless)
    assert {(("a", b"old bytes"),), (("a", b"new bytes"),), (("a", b""),), (("a", b"new \0\0\0\0\0"),)} <= found


def test_a_file_is_sure_and_its_name_is_not(folder: Path) -> None:
    def no_folder(files: Files, folder: Path) -> None:
        with (folder / "b").open("wb") as file:
            file.write(b"bytes")
            file.flush()
            os.fsync(file.fileno())

    assert after(folder, no_folder) == {(("a", b"old bytes"),), (("a", b"old bytes"), ("b", b"bytes"))}


def test_a_removal_comes_back_until_the_folder_is_synced(folder: Path) -> None:
    assert after(folder, lambda files, folder: files.unlink(folder / "a")) == {(), (("a", b"old bytes"),)}

    def synced(files: Files, folder: Path) -> None:
        files.sync_folder(folder)

    assert after(folder, synced) == {()}


def test_of_two_writes_in_place_the_later_may_survive_alone(folder: Path) -> None:
    with recorded(folder) as disk, (folder / "a").open("r+b") as file:
        for at, data in ((0, b"OLD"), (4, b"BYTES")):
            file.seek(at)
            file.write(data)
            file.flush()
            disk.cut("between")
    (cut,) = disk.cuts[-1:]
    assert {content for ((_, content),) in contents(cut)} >= {b"old bytes", b"OLD bytes", b"old BYTES", b"OLD BYTES"}
    assert tree(cut, (TORN, DROPPED)) == {Path("a"): b"Old bytes"}


def test_an_inode_is_not_taken_for_another(folder: Path) -> None:
    def again(files: Files, folder: Path) -> None:
        files.unlink(folder / "a")
        (folder / "a").write_bytes(b"another file")

    found = after(folder, again)
    torn = b"anothe" + bytes(6)
    assert found == {(("a", content),) for content in (b"old bytes", b"another file", b"", torn)}


def test_a_state_is_written_as_it_is(folder: Path, tmp_path: Path) -> None:
    with recorded(folder) as disk:
        disk.files.make_folder(folder / "below")
        (folder / "below" / "b").write_bytes(b"1")
        (folder / "vault.db").write_bytes(b"2")
    (cut,) = disk.cuts[-1:]
    write_state(cut, (KEPT,) * len(cut.pending), folder, tmp_path / "copy")
    found = {
        str(p.relative_to(tmp_path / "copy")): p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()
    }
    assert found == {"a": b"old bytes", "below/b": b"1", "vault.db": b"2"}
    write_state(cut, (DROPPED,) * len(cut.pending), folder, tmp_path / "lost")
    assert sorted(path.name for path in (tmp_path / "lost").iterdir()) == ["a", "vault.db"]


TRACED = """
import os, sys
from pathlib import Path
from tests.sweep.tracer import HALF, KILL, trace
folder = Path(sys.argv[1])
def work(begin, say):
    (folder / "before").write_bytes(b"x")
    begin()
    handle = os.open(folder / "a", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(handle, b"123456")
        say(b"written")
    except OSError as error:
        say(str(error.errno).encode())
    os.fsync(handle)
    os.rename(folder / "a", folder / "b")
for verdict, at in ((None, 0), (KILL, 1), (HALF, 1), (28, 1), (KILL, 3), (5, 3)):
    for path in folder.iterdir():
        path.unlink()
    done = trace(work, folder, lambda number, call: verdict if number == at else None)
    there = {p.name: p.read_text() for p in sorted(folder.iterdir())}
    print(",".join(done.calls), done.said.decode(), done.killed, done.code, there)
"""


def test_a_process_is_stopped_before_a_call_in_the_middle_of_one_or_told_that_it_failed(tmp_path: Path) -> None:
    if reason := works():
        pytest.skip(reason)
    done = subprocess.run([sys.executable, "-c", TRACED, tmp_path], capture_output=True, text=True, check=True)
    every = "openat,write,fsync,rename"
    assert done.stdout.splitlines() == [
        f"{every} written False 0 {{'b': '123456', 'before': 'x'}}",
        "openat,write  True -9 {'a': '', 'before': 'x'}",
        "openat,write  True -9 {'a': '123', 'before': 'x'}",
        f"{every} 28 False 0 {{'b': '', 'before': 'x'}}",
        f"{every} written True -9 {{'a': '123456', 'before': 'x'}}",
        f"{every} written False 70 {{'a': '123456', 'before': 'x'}}",
    ]
