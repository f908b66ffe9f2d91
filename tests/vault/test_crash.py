"""What a crash, a full disk or a killed process leaves: the old state or the new one (I7)."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from fedmem.errors import StorageError
from fedmem.vault.vault import ALL

REPOSITORY = Path(__file__).parents[2]


def state(vault) -> tuple[int, list[str], list[str]]:
    """What the ordinary path shows."""
    return len(vault.records(ALL)), [block.id for block in vault.blocks()], [e.kind for e in vault.ledger.events()]


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("kind", ["cut", "full"])
def test_adding_records_is_whole_or_absent(vaults, faults, kind: str, at: int) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    faults.arm(kind, at)
    try:
        vault.add_records(vaults.records(3))
        expected = 5
    except (StorageError, faults.PowerCut):
        expected = 2
    faults.arm(kind, None)
    if kind == "full":
        assert len(vault.records(ALL)) == expected
        vault.add_records(vaults.records(1))  # the same object goes on once there is space
        expected += 1
    vault = vaults.reopen(vault)
    if kind == "cut" and len(vault.records(ALL)) == 5:
        expected = 5  # the cut came after the commit: nothing was acknowledged, and nothing is half
    assert len(vault.records(ALL)) == expected
    assert len(vault.core.table.keys) == expected + 1  # no orphan keys; one is the ledger's


@pytest.mark.parametrize("at", range(16))
def test_finishing_a_run_on_a_full_disk(vaults, faults, at: int) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    run = vault.begin_run(vaults.TOPIC, "r", {}, "d", [], {})
    before = state(vault)
    faults.arm("full", at)
    try:
        vault.finish_run(run, vaults.TOPIC, "r", b"rows", 1, 1, 1)
        finished = True
    except StorageError:
        finished = False
        assert state(vault) == before
    faults.arm("full", None)
    if not finished:
        # The old state is whole: the same run finishes once there is space.
        vault.finish_run(run, vaults.TOPIC, "r", b"rows", 1, 1, 1)
    assert state(vaults.reopen(vault)) == (2, [run.block_id], ["spend", "run_finished"])


def test_a_full_database_is_a_storage_error_and_changes_nothing(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    with vault.core.database.session() as session:
        pages = session.execute(text("PRAGMA page_count")).scalar_one()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StorageError, match="Free some disk space") as caught:
        vault.add_records(vaults.records(200))
    assert vaults.CANARY not in str(caught.value)
    assert len(vault.records(ALL)) == 2
    vault = vaults.reopen(vault)
    assert len(vault.records(ALL)) == 2
    vault.add_records(vaults.records(200))


CHILD = """
import os, signal, sys
import numpy as np
from fedmem.vault.vault import NewRecord, Vault
vault = Vault.open(sys.argv[1], subject="alice")
ids = vault.add_records([NewRecord("x", None, (), np.ones(2, np.float32), "r")] * 3)
run = vault.begin_run("t", "r", {}, "d", [], {})
block = vault.finish_run(run, "t", "r", b"rows", 1, 1, 1)
os.write(1, (" ".join([*ids, block.id])).encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_acknowledged_survives_a_killed_process(vaults) -> None:
    vault = vaults.create()
    vault.close()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(vault.root)],
        cwd=REPOSITORY,
        capture_output=True,
        env={**os.environ},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    *ids, block = done.stdout.decode().split()
    vault = vaults.open()
    assert [record.id for record in vault.records(ALL)] == ids
    assert vault.block_rows(block) == b"rows"
    assert [event.kind for event in vault.ledger.events()] == ["spend", "run_finished"]


def test_temporaries_and_unknown_containers_are_swept_at_opening(vaults) -> None:
    vault = vaults.create()
    block = vaults.block(vault)
    vault.close()
    for name in ("0.tmp", "blocks/1.tmp", "receipts/2.tmp", f"blocks/{'0' * 32}.fmb"):
        (vault.root / name).write_bytes(b"left by a crash")
    vaults.open(write=False)
    assert (vault.root / "0.tmp").exists()  # a reader changes nothing
    vault = vaults.open()
    assert not list(vault.root.rglob("*.tmp"))
    assert [path.stem for path in (vault.root / "blocks").iterdir()] == [block]
