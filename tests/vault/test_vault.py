"""The vault from outside: what goes in comes out, for its subject, for one writer, and nothing else does."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedmem.errors import (
    Busy,
    KeystoreError,
    NothingMatched,
    Refused,
    StorageError,
    UsageError,
    VerificationFailed,
)
from fedmem.vault.vault import ALL, Vault


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` with its bytes; SQLite's shared-memory index aside."""
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and not p.name.endswith("-shm")}


def test_no_vault_here(tmp_path: Path) -> None:
    with pytest.raises(NothingMatched):
        Vault.open(tmp_path / "absent", subject="alice")
    assert not (tmp_path / "absent").exists()


def test_another_subject_is_refused(vaults) -> None:
    vault = vaults.create()
    vault.close()
    with pytest.raises(Refused, match="another subject"):
        Vault.open(vault.root, subject="bob")


def test_a_second_writer_waits_for_a_change_and_no_longer(vaults, home: Path) -> None:
    vault = vaults.create()
    code = (
        "import sys\nfrom fedmem.vault.vault import Vault\n"
        "try:\n    Vault.open(sys.argv[1], subject='alice', timeout=0)\n"
        "except Exception as e:\n    sys.exit(e.exit_code)"
    )
    command = [sys.executable, "-c", code, str(vault.root)]
    with vault.core.turn():
        done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
        assert done.returncode == Busy.exit_code == 7
        with pytest.raises(Busy):
            vaults.open(timeout=0)
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == 0
    vaults.open().add_records(vaults.records(1))
    vault.add_records(vaults.records(1))
    assert len(vaults.reopen(vault).records(ALL)) == 2


def test_wrong_passphrase_changes_nothing(vaults) -> None:
    vault = vaults.create(keystore="passphrase", ask=lambda: "correct horse")
    vault.add_records(vaults.records(1))
    vault.close()
    before = tree(vaults.base)
    with pytest.raises(KeystoreError, match="Type it again"):
        vaults.open(ask=lambda: "wrong horse")
    with pytest.raises(KeystoreError, match="terminal"):
        vaults.open()
    assert tree(vaults.base) == before
    assert len(vaults.open(ask=lambda: "correct horse").records(ALL)) == 1


def test_lost_slots_are_a_keystore_error(vaults, home: Path) -> None:
    vault = vaults.create()
    vault.close()
    (home / "slots").rename(home / "elsewhere")
    with pytest.raises(KeystoreError):
        vaults.open()


@pytest.mark.parametrize("cut", [0, 1, 30, 150, -1])
def test_truncated_key_table_is_refused(vaults, cut: int) -> None:
    vault = vaults.create()
    vault.close()
    path = vault.root / "table.fmk"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(VerificationFailed):
        vaults.open()
    path.write_bytes(whole)
    vaults.open()


def test_a_file_that_no_store_answers_for(vaults) -> None:
    vault = vaults.create()
    vault.close()
    (vault.root / "cache.bin").write_bytes(b"?")
    with pytest.raises(Refused, match="no content store"):
        vaults.open()
    (vault.root / "cache.bin").unlink()
    vaults.open()


def test_a_table_that_no_store_answers_for(vaults) -> None:
    import sqlite3

    vault = vaults.create()
    vault.close()
    with sqlite3.connect(vault.root / "vault.db") as connection:
        connection.execute("CREATE TABLE notes (text TEXT)")
    connection.close()
    with pytest.raises(Refused):
        vaults.open()


def test_create_never_overwrites(vaults, tmp_path: Path) -> None:
    vault = vaults.create()
    vault.close()
    with pytest.raises(Refused, match="already"):
        vaults.create()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo").write_bytes(b"x")
    with pytest.raises(Refused, match="not empty"):
        vaults.create("full")
    with pytest.raises(UsageError):
        vaults.create("new", keystore="cloud")


def test_creation_cut_anywhere_leaves_no_vault_or_a_whole_one(vaults, faults) -> None:
    for at in range(60):
        faults.arm("cut", at)
        try:
            vaults.create().close()
            break
        except faults.PowerCut:
            faults.arm("cut", None)
            if (vaults.base / "v" / "vault.json").exists():
                vaults.open().close()
                break
    assert at > 10
    vaults.open()


def test_reader_reads_and_refuses_to_write(vaults) -> None:
    vault = vaults.create()
    reader = vaults.open(write=False)
    vault.add_records(vaults.records(2))
    block = vaults.block(vault)
    assert len(reader.records(ALL)) == 2
    assert reader.block_rows(block)
    with pytest.raises(Refused, match="write=True"):
        reader.add_records(vaults.records(1))
    reader.close()
    with pytest.raises(UsageError, match="closed"):
        reader.records(ALL)


def test_every_connection_has_its_settings(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import text

    from fedmem.vault.store import database

    vault = vaults.create()
    with vault.core.database.session() as session:
        found = {name: session.execute(text(f"PRAGMA {name}")).scalar_one() for name in database.PRAGMAS}
    assert found["journal_mode"] == "wal"
    assert (found["synchronous"], found["secure_delete"], found["temp_store"]) == (2, 1, 2)
    vault.close()
    monkeypatch.setitem(database.PRAGMAS, "secure_delete", ("FAST", 1))
    with pytest.raises(StorageError, match="secure_delete"):
        vaults.open()


def test_opening_turns_core_dumps_off(vaults) -> None:
    import resource

    vaults.reopen(vaults.create())
    assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0


def test_the_vault_is_for_this_user_only(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1))
    assert vault.root.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in vault.root.rglob("*"))
