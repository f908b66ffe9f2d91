"""File locks: one holder among objects and processes, released by `release` and by the end of a process."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from fedmem.errors import Busy, StorageError
from fedmem.storage.locks import FileLock, WriterLock, is_locked
from tests.storage.forked import in_child


def hold_and_die(path: Path) -> str:
    FileLock(path)
    return "held"


def test_one_holder_until_it_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path)
    with pytest.raises(BlockingIOError):
        FileLock(path)
    assert is_locked(path)
    lock.release()
    lock.release()
    assert not is_locked(path)
    FileLock(path).release()


def test_the_end_of_a_process_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    answer, end = in_child(lambda: hold_and_die(path), hold=True)
    end()
    assert answer == "held"
    FileLock(path).release()


def test_a_refused_lock_leaves_no_open_file(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        with pytest.raises(BlockingIOError):
            FileLock(tmp_path / "lock")
    assert len(os.listdir("/dev/fd")) == before
    lock.release()


def test_a_missing_file_is_made_only_when_asked(tmp_path: Path) -> None:
    for use in (lambda path: FileLock(path, flags=0), is_locked):
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "none")
    FileLock(tmp_path / "new").release()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_writer_that_waits_gets_the_lock_and_one_that_does_not_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = WriterLock(path, "training")
    with pytest.raises(Busy, match="this training"):
        WriterLock(path, "training")
    begin = time.monotonic()
    with pytest.raises(Busy):
        WriterLock(path, timeout=0.1)
    assert time.monotonic() - begin >= 0.1
    timer = threading.Timer(0.05, first.release)
    timer.start()
    WriterLock(path, timeout=30).release()
    timer.join()


def test_a_lock_that_cannot_be_opened_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the lock of the vault"):
        WriterLock(tmp_path / "none" / "lock")


def hold_again_and_again(path: Path, seconds: float, taken: "multiprocessing.Queue[float]") -> None:
    """Take the lock without a pause in between, and report the longest wait."""
    end, longest = time.monotonic() + seconds, 0.0
    while time.monotonic() < end:
        asked = time.monotonic()
        lock = WriterLock(path, timeout=30, is_fair=True)
        longest = max(longest, time.monotonic() - asked)
        time.sleep(0.005)
        lock.release()
    taken.put(longest)


def test_no_process_waits_for_ever(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    waits: multiprocessing.Queue[float] = context.Queue()
    workers = [context.Process(target=hold_again_and_again, args=(tmp_path / "lock", 1.5, waits)) for _ in range(4)]
    for worker in workers:
        worker.start()
    longest = [waits.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert max(longest) < 1.5  # each got it while the others wanted it too


def test_who_waits_too_long_is_told_and_calls_back_meanwhile(tmp_path: Path) -> None:
    calls: list[float] = []
    lock = WriterLock(tmp_path / "lock")
    with pytest.raises(Busy):
        WriterLock(tmp_path / "lock", timeout=0.35, while_waiting=lambda: calls.append(time.monotonic()))
    assert len(calls) >= 2
    lock.release()
    WriterLock(tmp_path / "lock").release()


def test_an_error_while_waiting_leaves_the_place_free(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError

    lock = WriterLock(tmp_path / "lock", is_fair=True)
    with pytest.raises(ValueError):  # noqa: PT011
        WriterLock(tmp_path / "lock", timeout=5, is_fair=True, while_waiting=fail)
    lock.release()
    WriterLock(tmp_path / "lock", is_fair=True).release()
