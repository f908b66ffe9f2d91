"""Executing an erasure: it is completed after a clean rescan, and partial otherwise."""

import random
import sqlite3

import pytest

from fedmem import erasure
from fedmem.errors import PartialErasure
from tests.erasure.test_engine import OTHER, erase, full, gone


def test_many_records_leave_no_ciphertext_in_the_database(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)  # which cells move follows from the ids
    monkeypatch.setattr("fedmem.vault.store.records.new_id", lambda: f"{chance.getrandbits(128):032x}")
    vault = vaults.create()
    for _ in range(8):
        vault.add_records(vaults.records(120))
        vault.add_records(vaults.records(120, topic=OTHER))
    outcome = erase(vault, vaults.TOPIC)
    assert erasure.verify(vault, outcome.id, deep=True).is_clean
    assert len(vault.records(OTHER)) == 960


def test_a_reader_in_the_way_makes_it_partial_and_it_resumes(vaults) -> None:
    vault = full(vaults)
    vault.core.database.checkpoint()
    reader = sqlite3.connect(vault.root / "vault.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM records").fetchone()
    with pytest.raises(PartialErasure, match="erase resume") as caught:
        erase(vault, vaults.TOPIC)
    assert caught.value.exit_code == 5
    assert gone(vault, vaults.TOPIC)
    assert [status.state for status in erasure.status(vault)] == ["partial"]
    reader.close()
    assert [outcome.state for outcome in erasure.resume(vaults.reopen(vault))] == ["completed"]


class LeakyStore:
    """A store that says it let go and did not, until told to."""

    name, order, method, claims = "cache", 9, "dropped from memory", frozenset[str]()

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.leaks = True

    def enumerate(self, ids: frozenset[str]) -> list:
        return []

    def erase(self, ids: frozenset[str]) -> None:
        if not self.leaks:
            self.held -= ids

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"{item} is cached" for item in sorted(self.held & ids)]


def test_a_store_that_still_holds_something_makes_it_partial(vaults) -> None:
    vault, store = full(vaults), LeakyStore()
    vault.register(store)
    store.held = set(vault.ids_of(vaults.TOPIC))
    with pytest.raises(PartialErasure):
        erase(vault, vaults.TOPIC)
    (status,) = erasure.status(vault)
    assert status.state == "partial"
    assert status.receipt_path is None
    assert not erasure.verify(vault, status.id).is_clean
    store.leaks = False
    (outcome,) = erasure.resume(vault)
    assert outcome.state == "completed"
    assert not store.held
