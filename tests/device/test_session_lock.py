"""The lock, status and requests of a training: one at a time, readable by all, and nothing private in a file."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedmem.device.session_lock import (
    SIZE,
    SessionLock,
    SessionStatus,
    is_training_running,
    read_status,
    request_stop,
)
from fedmem.errors import BudgetExceeded, Busy
from fedmem.vault.store.checkpoints import FOLDER

HOLDER = """
import sys, time
from pathlib import Path
from fedmem.device.session_lock import SessionLock
with SessionLock(Path(sys.argv[1])) as lock:
    lock.write_status("5e", step=2, steps=9)
    print("locked", flush=True)
    time.sleep(60)
"""


def test_without_a_training_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    assert not is_training_running(tmp_path)


def test_a_second_training_is_refused_and_the_first_one_keeps_its_status(tmp_path: Path) -> None:
    with SessionLock(tmp_path) as lock:
        lock.write_status("5e", step=3, steps=80)
        with pytest.raises(Busy, match="runs already"):
            SessionLock(tmp_path)
        assert is_training_running(tmp_path)
        assert read_status(tmp_path) == SessionStatus(os.getpid(), "5e", 3, 80)
    assert not is_training_running(tmp_path)
    with SessionLock(tmp_path):
        assert read_status(tmp_path) == SessionStatus(os.getpid())  # nothing of the earlier training is left


def test_a_killed_training_does_not_look_as_if_it_runs(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    assert is_training_running(tmp_path)
    holder.kill()
    holder.communicate()
    assert not is_training_running(tmp_path)
    assert read_status(tmp_path) == SessionStatus(holder.pid, "5e", 2, 9)


def test_a_request_reaches_the_running_training_and_no_later_one(tmp_path: Path) -> None:
    with SessionLock(tmp_path) as lock:
        assert lock.request() == ""
        assert not request_stop(tmp_path, "pause", patience=0.05)
        assert lock.request() == "pause"
        assert not request_stop(tmp_path, "cancel", patience=0.05)
        assert lock.request() == "cancel"
    request_stop(tmp_path, "cancel", patience=0)  # nothing runs
    with SessionLock(tmp_path) as lock:
        assert lock.request() == ""


def test_a_request_returns_when_the_training_has_stopped(tmp_path: Path) -> None:
    lock = SessionLock(tmp_path)

    def train() -> None:
        with lock:
            while lock.request() != "pause":
                pass

    thread = threading.Thread(target=train)
    thread.start()
    assert request_stop(tmp_path, "pause", patience=20)
    thread.join()


def test_of_an_unexpected_error_only_the_class_is_kept(tmp_path: Path) -> None:
    def fail(lock: SessionLock) -> None:
        lock.write_status("5e", step=1, steps=2)
        raise ValueError("the text of a record")

    with pytest.raises(ValueError, match="record"), SessionLock(tmp_path) as lock:
        fail(lock)
    status = read_status(tmp_path)
    assert status is not None
    assert (status.run, status.step, status.error) == ("5e", 1, "FedmemError")
    assert not [path for path in (tmp_path / FOLDER).iterdir() if b"record" in path.read_bytes()]


def test_a_typed_error_is_kept_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(BudgetExceeded), SessionLock(tmp_path):
        raise BudgetExceeded("The budget is spent. " + "x" * SIZE)
    status = read_status(tmp_path)
    assert status is not None
    assert status.error == "BudgetExceeded"
    assert status.message.startswith("The budget is spent.")
    assert len(status.message) < SIZE
