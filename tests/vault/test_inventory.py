"""Key table against database: what no interrupted change explains is refused, and the rest of a crash is swept."""

from typing import Any

import pytest

from fedmem import erasure
from fedmem.errors import VerificationFailed
from fedmem.vault.store import inventory
from fedmem.vault.store.acknowledgement import items_of
from fedmem.vault.store.content_stores import KeyTableStore
from fedmem.vault.vault import Vault


@pytest.fixture
def vault(vaults: Any) -> Vault:
    made = vaults.create()
    made.add_records(vaults.records(3))
    vaults.block(made)
    return made


def test_a_key_that_is_missing_is_refused_unless_an_erasure_is_unfinished(vault: Vault, vaults: Any) -> None:
    core = vault.core
    inventory.check_keys(core.table, items_of(core.database), core.database)
    planned = erasure.plan(vault, erasure.Scope.topic(vaults.TOPIC))
    with core.writing():
        KeyTableStore(core).erase(planned.ids)
        with pytest.raises(VerificationFailed, match="older than the database"):
            inventory.check_keys(core.table, items_of(core.database), core.database)
        entry = erasure.journal.new("ab" * 16, planned.digest, "00" * 32, 0, planned.ids, planned.items, {},
                                    opening="", listed={})  # fmt: skip
        with core.database.session() as session:
            erasure.journal.add(session, entry)
        inventory.check_keys(core.table, items_of(core.database), core.database)
    assert vault.unfinished_erasures() == inventory.unfinished_erasures(core.database) == [entry.id]


def test_receipts_are_listed_with_their_digests_and_no_roots_for_small_erasures(vault: Vault, vaults: Any) -> None:
    planned = erasure.plan(vault, erasure.Scope.topic(vaults.TOPIC))
    outcome = erasure.execute(vault, planned, planned.digest)
    assert inventory.receipts(vault.core.database) == [(outcome.id, erasure.journal.last_receipt(vault))]
    assert inventory.item_roots(vault.core.database) == []


@pytest.mark.parametrize(("table", "match"), [("events", "privacy ledger"), ("records", "lacks tables")])
def test_a_missing_table_is_named(vault: Vault, table: str, match: str) -> None:
    from sqlalchemy import text

    inventory.check_tables(vault.core.database)
    with vault.core.writing(), vault.core.database.session() as session:
        session.execute(text(f"DROP TABLE {table}"))
    with pytest.raises(VerificationFailed, match=match):
        inventory.check_tables(vault.core.database)
    vault.core.database.close()


def test_files_that_no_row_names_are_swept_and_the_others_stay(vault: Vault, vaults: Any) -> None:
    block = vault.core.block_file(vault.blocks()[0].id)
    strays = [block.with_name("ef" * 16 + ".fmb"), vault.root / "receipts" / ("ef" * 16 + ".items")]
    for stray in strays:
        stray.write_bytes(b"left by a crash")
    vaults.reopen(vault)
    assert not any(stray.exists() for stray in strays)
    assert block.exists()
