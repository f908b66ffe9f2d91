"""The schema: versions go up one whole step at a time, and never down."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from fedmem.errors import StorageError, VersionMismatch
from fedmem.vault.crypto.key_table import RolledBack
from fedmem.vault.store import database
from fedmem.vault.store.database import SCHEMA, Database
from fedmem.vault.vault import ALL, Vault


def version(path: Path) -> int:
    connection = sqlite3.connect(path)
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return found


def schema(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Columns of every table: name, type, whether null, whether key."""
    connection = sqlite3.connect(path)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: sorted(row[1:] for row in connection.execute(f"PRAGMA table_info({name})")) for name in names}
    connection.close()
    return found


def downgrade(path: Path) -> None:
    """The file as the first version had it: no register of copies, no revision, no version."""
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE copies")
    connection.execute("DROP TABLE revision")
    connection.execute("PRAGMA user_version = 0")
    connection.commit()
    connection.close()


@pytest.fixture
def old(vaults) -> Vault:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    vaults.block(vault)
    vault.close()
    downgrade(vault.root / "vault.db")
    vault.core.keystore.note("database", b"")  # that version noted no acknowledgement
    return vault


def test_a_first_database_under_a_newer_note_is_an_older_database(vaults, old: Vault) -> None:
    vault = vaults.open()
    vault.close()
    downgrade(old.root / "vault.db")
    with pytest.raises(RolledBack):
        vaults.open()


@pytest.mark.parametrize("write", [True, False])
def test_a_database_of_the_previous_version_is_taken_up(vaults, old: Vault, write: bool, tmp_path: Path) -> None:
    vault = vaults.open(write=write)
    assert len(vault.records(ALL)) == 2
    assert len(vault.blocks()) == 1
    assert [event.kind for event in vault.ledger.events()] == ["spend", "run_finished"]
    assert version(old.root / "vault.db") == SCHEMA
    (tmp_path / "fresh.db").touch()
    fresh = Database(tmp_path / "fresh.db", write=True)
    fresh.create_tables()
    fresh.close()
    assert schema(old.root / "vault.db") == schema(tmp_path / "fresh.db")


def test_a_step_that_fails_leaves_the_old_version_whole(vaults, old: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE copies (id VARCHAR)"))
        raise StorageError("The disk refused.")

    before = schema(old.root / "vault.db")
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (half,))
        with pytest.raises(StorageError):
            vaults.open()
    assert (version(old.root / "vault.db"), schema(old.root / "vault.db")) == (0, before)
    assert len(vaults.open().records(ALL)) == 2


@pytest.mark.parametrize("write", [True, False])
def test_a_newer_database_is_a_version_mismatch_and_untouched(vaults, write: bool) -> None:
    vault = vaults.create()
    vault.close()
    connection = sqlite3.connect(vault.root / "vault.db")
    connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    with pytest.raises(VersionMismatch, match="Update fedmem") as caught:
        vaults.open(write=write)
    assert caught.value.exit_code == 9
    assert version(vault.root / "vault.db") == SCHEMA + 1


def test_a_copy_is_whole_and_has_the_version(vaults, tmp_path: Path) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(3))
    vault.core.database.copy_to(tmp_path / "copy.db")
    assert version(tmp_path / "copy.db") == SCHEMA
    connection = sqlite3.connect(tmp_path / "copy.db")
    assert connection.execute("SELECT count(*) FROM records").fetchone() == (3,)
    connection.close()
