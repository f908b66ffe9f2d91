"""The sealed list of a large erasure: missing or changed, it is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.vault.backup.check import check
from fedmem.vault.store import item_list
from fedmem.vault.vault import NewRecord, Vault

MANY = 300


@pytest.fixture
def vault(vaults) -> Vault:
    """A vault with a topic whose erasure gets a list of its own."""
    made = vaults.create()
    made.add_records(records("large"))
    return made


def records(topic: str) -> list[NewRecord]:
    return [NewRecord(f"note {i}", topic, (1,), np.ones(4, np.float32), "r1") for i in range(MANY)]


def erase(vault: Vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


def list_of(vault: Vault, erasure_id: str) -> Path:
    return item_list.path(vault.root, erasure_id)


def test_the_list_is_sealed_and_verification_reads_it(vaults, vault: Vault) -> None:
    ids = vault.ids_of("large")
    outcome = erase(vault, "large")
    data = list_of(vault, outcome.id).read_bytes()
    assert not any(record.encode() in data for record in ids)
    again = vaults.reopen(vault)
    assert erasure.verify(again, outcome.id, deep=True).is_clean
    assert erasure.status(again)[0].counts == {"key": MANY, "record": MANY}


@pytest.mark.parametrize("damage", ["missing", "changed", "other"])
def test_a_missing_or_changed_list_is_told(vaults, vault: Vault, damage: str) -> None:
    vault.add_records(records("second"))
    first, other = erase(vault, "large"), erase(vault, "second")
    path = list_of(vault, first.id)
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        shutil.copy(list_of(vault, other.id), path)
    for work in (lambda: erasure.verify(vault, first.id), lambda: erasure.item_lines(vault, first.id)):
        with pytest.raises((NothingMatched, VerificationFailed)):
            work()
    root = vault.root
    vault.close()
    assert [fault.part for fault in check(root, subject="alice", ask=None)] == ["item lists"]
