"""`check` names what does not fit, and changes nothing."""

import sqlite3
from pathlib import Path

import pytest

from fedmem.vault.backup.check import check
from tests.vault.test_opening import block_of, root, seen, states
from tests.vault.test_repair import bytes_under

__all__ = ["root", "states"]  # fixtures


def parts(root: Path) -> set[str]:
    return {fault.part for fault in check(root, subject="ana", ask=None)}


def test_a_whole_vault_has_no_fault(root: Path) -> None:
    before = bytes_under(root)
    assert check(root, subject="ana", ask=None) == []
    assert bytes_under(root) == before


@pytest.mark.parametrize("part", ["vault.json", "table.fmk", "vault.db", "vault.db-wal", "device.pub", "egress.log"])
def test_a_missing_part_is_named(root: Path, part: str) -> None:
    (root / part).unlink()
    before = bytes_under(root)
    assert part.removesuffix("-wal") in parts(root)
    assert bytes_under(root) == before


def test_a_missing_block_and_receipt_are_named(root: Path) -> None:
    block_of(root).unlink()
    next((root / "receipts").iterdir()).unlink()
    assert parts(root) == {"blocks", "receipts"}


def test_a_changed_record_is_named_by_its_id(root: Path) -> None:
    seen(root, "ana", write=True)  # the log goes into the database
    with sqlite3.connect(root / "vault.db") as connection:
        (item,) = connection.execute("SELECT id FROM records LIMIT 1").fetchone()
        connection.execute("UPDATE records SET sealed = zeroblob(100) WHERE id = ?", (item,))
    connection.close()
    (fault,) = check(root, subject="ana", ask=None)
    assert (fault.part, item in fault.message) == ("records", True)
