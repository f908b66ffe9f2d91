"""A forked child does not use, release or keep what its parent opened."""

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedmem.errors import Busy
from fedmem.storage.forks import InheritedVault
from fedmem.vault.store.egress_entry import EgressEntry
from fedmem.vault.store.egress_log import EgressLog
from fedmem.vault.store.leases import stale_readers
from fedmem.vault.vault import ALL, NewRecord, Vault
from tests.storage.forked import in_child


def note(text: str) -> NewRecord:
    return NewRecord(text, "health", (), np.ones(4, np.float32), "r")


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
