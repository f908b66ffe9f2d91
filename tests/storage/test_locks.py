"""File locks and the lock of a process: one holder, in the order in which they were asked for."""

import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from fedmem.errors import Busy
from fedmem.storage.forks import ProcessLock
from fedmem.storage.locks import WriterLock


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


def test_threads_get_it_in_the_order_of_asking() -> None:
    lock, order, started = ProcessLock(), list[int](), list[threading.Thread]()

    def work(number: int) -> None:
        with lock, lock:  # re-entrant
            order.append(number)

    with lock:
        for number in range(8):
            started.append(threading.Thread(target=work, args=(number,)))
            started[-1].start()
            while len(lock._waiting) <= number:
                time.sleep(0.001)
        assert not order
    for thread in started:
        thread.join()
    assert order == list(range(8))


def test_only_one_thread_is_inside() -> None:
    lock, inside, most = ProcessLock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(300):
            with lock:
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert lock.acquire_now()
    lock.release()


def test_acquire_now_does_not_wait() -> None:
    lock, answers = ProcessLock(), list[bool]()
    with lock:
        asker = threading.Thread(target=lambda: answers.append(lock.acquire_now()))
        asker.start()
        asker.join()
    assert answers == [False]
