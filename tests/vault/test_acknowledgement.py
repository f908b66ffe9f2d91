"""The note of the last acknowledged change: what is older than it is noticed."""

from pathlib import Path
from typing import Any

import pytest

from fedmem.errors import VerificationFailed
from fedmem.vault.vault import ALL
from tests.vault.test_opening import in_child, note


def tree(root: Path) -> dict[str, bytes]:
    """The files of a vault that hold its state."""
    return {path.name: path.read_bytes() for path in root.iterdir() if path.suffix in (".db", ".fmk", ".log")}


@pytest.mark.parametrize("are_notes_lost", [False, True])
@pytest.mark.parametrize("name", ["table.fmk", "table.log"])
def test_a_table_older_than_the_database_is_noticed(vaults, home: Path, name: str, are_notes_lost: bool) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1))
    old = (vault.root / name).read_bytes()
    vault.add_records(vaults.records(1))
    if name == "table.fmk":
        vault.keep(vaults.TOPIC, 3)  # writes the whole table
    vault.close()
    (vault.root / name).write_bytes(old)
    for path in home.rglob("*.note") if are_notes_lost else ():
        path.unlink()
    before = tree(vault.root)
    for write in (True, False):
        with pytest.raises(VerificationFailed):
            vaults.open(write=write)
    assert tree(vault.root) == before


def test_one_acknowledged_record_in_a_lost_log_is_enough(vaults: Any) -> None:
    vault = vaults.create()
    vault.add_records([note("first")])
    vault.close()
    in_child(lambda: vaults.open().add_records([note("second")]))
    log = (vault.root / "vault.db-wal").read_bytes()
    (vault.root / "vault.db-wal").unlink()
    with pytest.raises(VerificationFailed, match="log"):
        vaults.open()
    (vault.root / "vault.db-wal").write_bytes(log)
    assert [record.text for record in vaults.open().records(ALL)] == ["first", "second"]
