"""Leases: a live reader is seen by other processes, a dead one is swept, whoever had its number."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmem.errors import StorageError
from fedmem.storage.locks import FileLock
from fedmem.vault.store.leases import Lease, stale_readers

HOLD = """
import sys
from pathlib import Path
from fedmem.vault.store.leases import Lease
lease = Lease(Path(sys.argv[1]), int(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
lease.release()
print("released", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[object]:
    """Start a process that holds a lease of a generation."""
    started: list[subprocess.Popen[str]] = []

    def start(generation: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "leases"), str(generation)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_another_process_is_seen_until_it_lets_go(tmp_path: Path, hold) -> None:
    folder = tmp_path / "leases"
    process = hold(4)
    assert [lease.process for lease in stale_readers(folder, 5)] == [process.pid]
    assert stale_readers(folder, 4) == []  # it is of this generation
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "released\n"
    assert stale_readers(folder, 5) == []
    assert list(folder.iterdir()) == []


def test_a_killed_reader_is_swept(tmp_path: Path, hold) -> None:
    folder = tmp_path / "leases"
    process = hold(0)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(folder.iterdir())) == 1
    assert stale_readers(folder, 1) == []
    assert list(folder.iterdir()) == []


def test_a_mark_that_names_a_live_process_and_is_not_held_is_dead(tmp_path: Path) -> None:
    """A process number that was given again: process 1 is always there."""
    folder = tmp_path / "leases"
    folder.mkdir()
    (folder / "0-abc").write_bytes(b'{"pid":1,"started":0}')
    assert stale_readers(folder, 1) == []
    assert list(folder.iterdir()) == []


def test_only_the_opening_that_asks_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    own, other = Lease(folder, 0), Lease(folder, 0)  # two openings of one process
    assert [lease.mark for lease in stale_readers(folder, 1, own)] == [other.path.name]
    assert len(stale_readers(folder, 1)) == 2
    other.release()
    assert stale_readers(folder, 1, own) == []
    assert list(folder.iterdir()) == [own.path]  # it is not swept
    own.release()
    own.release()
    assert list(folder.iterdir()) == []


def test_two_that_look_at_once_do_not_take_each_other_for_a_reader(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    (folder / "0-abc").touch()
    looking = FileLock(folder / "0-abc", flags=0, is_shared=True)  # another process that looks at a dead mark
    assert stale_readers(folder, 1) == []
    looking.release()


def test_a_child_that_still_holds_its_copies_keeps_the_mark(tmp_path: Path) -> None:
    """It has the open file, as a child of a C library's fork has: no handler of Python has run in it."""
    folder = tmp_path / "leases"
    lease = Lease(folder, 0)
    copy = os.dup(lease._lock.handle)
    lease.release()
    assert [stale.mark for stale in stale_readers(folder, 1)] == [lease.path.name]
    os.close(copy)
    assert stale_readers(folder, 1) == []
    assert list(folder.iterdir()) == []


def test_a_new_reader_sweeps_the_dead(tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    (folder / "0-abc").touch()
    lease = Lease(folder, 3)
    assert [path.name.split("-")[0] for path in folder.iterdir()] == ["3"]
    lease.release()


def test_no_readers_ever(tmp_path: Path) -> None:
    assert stale_readers(tmp_path / "leases", 9) == []


def test_a_mark_that_a_full_disk_stops_is_no_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    errors = []  # an error keeps the variables of its frames alive
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(StorageError) as caught:
            Lease(tmp_path, 0)
        errors.append(caught.value)
    assert stale_readers(tmp_path, 1) == []
    assert list(tmp_path.iterdir()) == []


def test_a_mark_moves_to_a_later_generation(tmp_path: Path) -> None:
    lease = Lease(tmp_path, 0)
    assert len(stale_readers(tmp_path, 1)) == 1
    lease.move(1)
    assert stale_readers(tmp_path, 1) == []
    assert [reader.mark for reader in stale_readers(tmp_path, 2)] == [lease.path.name]
    lease.release()
    assert list(tmp_path.iterdir()) == []
