"""A forked child does not use, release or keep what its parent opened."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem.errors import Busy
from fedmem.storage.forks import InheritedVault, ProcessLock
from fedmem.storage.locks import FileLock
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.store.leases import stale_readers
from fedmem.vault.vault import ALL, NewRecord, Vault


def note(text: str) -> NewRecord:
    return NewRecord(text, "health", (), np.ones(4, np.float32), "r")


def in_child(work: Callable[[], object], hold: bool = False) -> tuple[str, Callable[[], None]]:
    """Run in a forked child; what it gave as text, and the way to end a child that is held."""
    read, write = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.close(go)
        try:
            answer = str(work())
        except BaseException as error:  # noqa: BLE001 (told to the parent)
            answer = type(error).__name__
        os.write(write, answer.encode())
        os.close(write)
        if hold:
            os.read(wait, 1)
        os._exit(0)
    os.close(write)
    os.close(wait)
    with os.fdopen(read) as stream:
        answer = stream.read()

    def end() -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(go, b"x")  # closing would not do: later children hold the pipe too
        os.close(go)
        os.waitpid(pid, 0)

    if not hold:
        end()
    return answer, end


USES: dict[str, Callable[[Vault], object]] = {
    "add": lambda vault: vault.add_records([note("from the child")]),
    "read": lambda vault: vault.records(ALL),
    "search": lambda vault: vault.search(np.ones(4, np.float32), 1),
    "blocks": lambda vault: vault.blocks(),
    "ledger": lambda vault: vault.ledger.events(),
    "append": lambda vault: vault.ledger.append("spend", {}),
    "generation": lambda vault: vault.generation,
    "database": lambda vault: vault.core.database.checkpoint(),
    "egress": lambda vault: EgressLog(vault.core).enter(EgressEntry("train.anchor", 1, 1, "00" * 32)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("write", [True, False])
def test_a_child_is_refused(vaults: Any, use: str, write: bool) -> None:
    vaults.create().add_records([note("kept")])
    vault = vaults.reopen(vaults.opened[-1], write=write)
    answer, _ = in_child(lambda: USES[use](vault))
    assert answer == InheritedVault.__name__
    assert [record.text for record in vault.records(ALL)] == ["kept"]


def test_the_error_says_what_to_do() -> None:
    error = InheritedVault()
    assert error.exit_code == 4
    assert "Open it again in this process" in str(error)


@pytest.mark.parametrize("first", ["child", "parent"])
def test_closing_in_the_child_leaves_the_parent_its_vault(vaults: Any, first: str) -> None:
    vault = vaults.create()
    vault.add_records([note("one")])
    if first == "parent":
        vault.add_records([note("two")])
    assert in_child(vault.close)[0] == "None"
    vault.add_records([note("three")])
    with vault.core.turn():
        assert in_child(vault.close)[0] == "None"
        with pytest.raises(Busy):  # the child did not give the parent's lock back
            vaults.open(timeout=0)
    assert len(vaults.reopen(vault).records(ALL)) == (2 if first == "child" else 3)


def test_a_child_that_lives_on_does_not_keep_the_lock(vaults: Any) -> None:
    vault = vaults.create()
    vault.add_records([note("one")])
    _, end = in_child(lambda: "ready", hold=True)
    try:
        vault.close()
        vaults.open().add_records([note("two")])
    finally:
        end()


def test_a_child_opens_the_vault_for_itself(vaults: Any) -> None:
    vault = vaults.create()
    vault.add_records([note("one")])
    vault.close()

    def work() -> int:
        with Vault.open(vault.root, subject="alice") as mine:
            mine.add_records([note("two")])
            return len(mine.records(ALL))

    assert in_child(work)[0] == "2"
    assert len(vaults.open().records(ALL)) == 2


def test_a_reader_that_a_child_inherited_is_not_waited_for_when_the_parent_let_go(vaults: Any) -> None:
    vaults.create().add_records([note("one")])
    reader = vaults.reopen(vaults.opened[-1], write=False)
    _, end = in_child(lambda: "ready", hold=True)
    try:
        assert len(list((reader.root / "leases").iterdir())) == 1
        reader.close()
        assert stale_readers(reader.root / "leases", 99) == []
    finally:
        end()


def test_a_child_that_ends_takes_no_mark_of_its_parent_away(vaults: Any) -> None:
    vaults.create().add_records([note("one")])
    reader = vaults.reopen(vaults.opened[-1], write=False)
    assert in_child(reader.close)[0] == "None"
    assert len(list((reader.root / "leases").iterdir())) == 1
    assert len(reader.records(ALL)) == 1


def test_the_keys_are_forgotten_in_the_child(vaults: Any) -> None:
    vault = vaults.create()
    vault.add_records([note("one")])
    assert in_child(lambda: len(vault.core.table.keys))[0] == "0"
    assert len(vault.core.table.keys) == 2


def test_a_fork_while_another_thread_is_inside(vaults: Any) -> None:
    vault = vaults.create()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with vault.core.lock:
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    try:
        assert in_child(lambda: vault.records(ALL))[0] == InheritedVault.__name__  # and does not wait for ever
    finally:
        leave.set()
        thread.join()


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


PROGRAM = """
import os, sys
import numpy as np
from fedmem.vault.vault import ALL, NewRecord, Vault
root = sys.argv[1]
def note(text):
    return NewRecord(text, "health", (), np.ones(4, np.float32), "r")
vault = Vault.open(root, subject="alice")
pid = os.fork()
if pid == 0:
    vault = None  # the child forgets the object, and ends as a program does: finalizers run
    sys.exit(0)
vault.add_records([note("from the parent")])
os.waitpid(pid, 0)
vault.add_records([note("from the parent, after the child")])
os._exit(0)  # as killed: the log stays
"""


def test_a_child_that_ends_as_a_program_does_not_touch_the_database(vaults: Any) -> None:
    vault = vaults.create()
    vault.close()
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(vault.root)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(vaults.open().records(ALL)) == 2


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
