"""What a forked child inherits is refused there, and the parent keeps it."""

import contextlib
import threading
import time
from pathlib import Path

import pytest

from fedmem.storage.forks import InheritedVault, ProcessLock, watch
from fedmem.storage.locks import FileLock
from tests.storage.forked import in_child


def test_the_error_says_what_to_do() -> None:
    error = InheritedVault()
    assert error.exit_code == 4
    assert "Open it again in this process" in str(error)


def test_locks_alone(tmp_path: Path) -> None:
    lock, file = ProcessLock(), FileLock(tmp_path / "lock")
    with lock, lock:
        pass
    assert in_child(lock.__enter__)[0] == InheritedVault.__name__
    assert in_child(lambda: file.handle)[0] == "-1"
    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "lock")
    file.release()
    FileLock(tmp_path / "lock").release()


def test_forks_and_locks_of_many_threads(tmp_path: Path) -> None:
    """Whatever instant a fork meets, no lock that is given back is still held by the child."""
    stop = threading.Event()

    def take(name: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(BlockingIOError):
                FileLock(tmp_path / str(name)).release()

    threads = [threading.Thread(target=take, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    ends = [in_child(lambda: "ready", hold=True)[1] for _ in range(20)]
    stop.set()
    for thread in threads:
        thread.join()
    try:
        for name in range(3):
            FileLock(tmp_path / str(name)).release()
    finally:
        for end in ends:
            end()


class Item:
    """An object that writes down that it was disowned."""

    def __init__(self) -> None:
        self.disowned = 0

    def disown(self) -> None:
        self.disowned += 1


def test_a_watched_item_is_disowned_once_and_only_in_the_child() -> None:
    item, other = Item(), Item()
    watch(item)
    watch(item)
    assert in_child(lambda: (item.disowned, other.disowned))[0] == "(1, 0)"
    assert item.disowned == 0


def test_a_grandchild_does_not_disown_what_its_parent_never_owned() -> None:
    item = Item()
    watch(item)
    assert in_child(lambda: in_child(lambda: item.disowned)[0])[0] == "1"


def test_a_child_can_make_locks_of_its_own() -> None:
    def work() -> str:
        with ProcessLock() as lock:
            return str(lock.is_inherited)

    assert in_child(work)[0] == "False"


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
    assert lock.acquire_within(0)
    lock.release()


def test_acquire_within_does_not_wait_longer() -> None:
    lock, answers = ProcessLock(), list[bool]()
    with lock:
        for timeout in (0, 0.05):
            asker = threading.Thread(target=lambda timeout=timeout: answers.append(lock.acquire_within(timeout)))
            asker.start()
            asker.join()
    assert answers == [False, False]
    assert not lock._waiting


class Renewed:
    """An object that a child replaces by a new one, as the thread that looks for erasures."""

    def __init__(self, generation: int = 0) -> None:
        self.generation = generation
        watch(self)

    def disown(self) -> None:
        global renewed
        renewed = Renewed(self.generation + 1)


renewed: Renewed


def test_what_a_child_makes_anew_is_made_anew_in_its_own_child() -> None:
    global renewed
    renewed = Renewed()
    assert in_child(lambda: in_child(lambda: renewed.generation)[0])[0] == "2"
    assert renewed.generation == 0
