"""The vault from outside: what goes in comes out, for its subject, for one writer, and nothing else does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmem.errors import (
    Busy,
    KeystoreError,
    NothingMatched,
    Refused,
    StorageError,
    UsageError,
    VerificationFailed,
    VersionMismatch,
)
from fedmem.vault.crypto.container import TruncatedContainer
from fedmem.vault.vault import ALL, NewRecord, Vault


def tree(root: Path) -> dict[str, bytes]:
    """Every file below `root` with its bytes; SQLite's shared-memory index aside."""
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and not p.name.endswith("-shm")}


def test_records_come_back_in_order_after_reopening(vaults) -> None:
    vault = vaults.create()
    given = vaults.records(5) + vaults.records(2, topic=None)
    ids = vault.add_records(given)
    vault = vaults.reopen(vault)
    found = vault.records(ALL)
    assert [record.id for record in found] == ids
    for record, new in zip(found, given, strict=True):
        assert (record.text, record.topic, record.path, record.release) == (new.text, new.topic, new.path, new.release)
        np.testing.assert_array_equal(record.vector, new.vector)
    assert len(vault.records(vaults.TOPIC)) == 5
    assert len(vault.records(None)) == 2
    assert vault.records("another topic") == []


def test_search_equals_brute_force_by_hand(vaults) -> None:
    vault = vaults.create()
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    vault.add_records([NewRecord(str(i), None, (), vector, "r") for i, vector in enumerate(vectors)])
    found = vault.search(np.array([1, 0], np.float32), 2)
    assert [record.text for record, _ in found] == ["0", "2"]
    assert found[1][1] == pytest.approx(0.6)
    assert vault.search(np.array([1, 0], np.float32), 0) == []


def test_vectors_of_another_embedder_are_refused_and_change_nothing(vaults) -> None:
    vault = vaults.create()
    narrow, wide = (NewRecord("secret", None, (), np.ones(width, np.float32), "r") for width in (2, 3))
    with pytest.raises(VersionMismatch):
        vault.add_records([narrow, wide])  # a vault without records: the batch itself is of two widths
    ids = vault.add_records([narrow])
    vault = vaults.reopen(vault)
    for fault in (lambda: vault.add_records([wide]), lambda: vault.search(np.ones(3, np.float32), 1)):
        with pytest.raises(VersionMismatch, match="another embedder") as caught:
            fault()
        assert "secret" not in str(caught.value)
    assert [record.id for record in vault.records(ALL)] == ids
    assert len(vault.search(np.ones(2, np.float32), 5)) == 1


def test_bad_records_are_refused_without_quoting_them(vaults) -> None:
    vault = vaults.create()
    before = tree(vault.root)
    bad_text = NewRecord("secret \ud800", "t", (), np.zeros(2, np.float32), "r")
    bad_vector = NewRecord("secret", "t", (), np.array([np.nan], np.float32), "r")
    for bad in (bad_text, bad_vector):
        with pytest.raises(UsageError) as caught:
            vault.add_records([*vaults.records(1), bad])
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None
    assert tree(vault.root) == before
    assert vault.add_records([]) == []


def test_repr_of_records_and_runs_shows_no_content(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1))
    run = vault.begin_run(vaults.TOPIC, "release-1", {}, "d", [], {"sigma": 1.0})
    shown = repr((vault.records(ALL), vaults.records(1), run, vault.blocks()))
    assert vaults.CANARY not in shown
    assert vaults.TOPIC not in shown
    assert repr(run.key) not in shown


def test_block_that_does_not_exist(vaults) -> None:
    vault = vaults.create()
    with pytest.raises(NothingMatched, match="fedmem block list"):
        vault.block("absent")
    with pytest.raises(NothingMatched):
        vault.block_rows("../../etc/passwd")


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


def test_truncated_block_is_refused_and_others_open(vaults) -> None:
    vault = vaults.create()
    first, second = vaults.block(vault), vaults.block(vault, "another", b"other rows")
    path = vault.core.block_file(first)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(TruncatedContainer) as caught:
        vault.block_rows(first)
    assert caught.value.exit_code == 6
    assert vault.block_rows(second) == b"other rows"
    path.write_bytes(whole)
    assert vault.block_rows(first).startswith(b"rows-canary")


def test_blocks_cannot_be_exchanged_or_rolled_back(vaults) -> None:
    vault = vaults.create()
    first, second = vaults.block(vault), vaults.block(vault)
    assert [(block.id, block.version) for block in vault.blocks()] == [(first, 1), (second, 2)]
    assert vault.block(vaults.TOPIC).id == second
    vault.core.block_file(second).write_bytes(vault.core.block_file(first).read_bytes())
    with pytest.raises(VerificationFailed):
        vault.block_rows(second)


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


def test_simulated_mark_cannot_be_removed(vaults) -> None:
    vault = vaults.create(simulated=True)
    vault.close()
    path = vault.root / "vault.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"simulated":true', b'"simulated":false'))
    with pytest.raises(VerificationFailed):
        vaults.open()
    path.write_bytes(whole)
    assert vaults.open().simulated


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b'"format":1', b'"format":2', VersionMismatch),
        (b'"keystore":"keyfile"', b'"keystore":"none"', VerificationFailed),
        (b'"kdf":null', b'"kdf":{}', VerificationFailed),
        (b"{", b"[", VerificationFailed),
    ],
)
def test_changed_public_facts(vaults, old: bytes, new: bytes, error: type[Exception]) -> None:
    vault = vaults.create()
    vault.close()
    path = vault.root / "vault.json"
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(error):
        vaults.open()


def test_gigantic_kdf_parameters_are_not_obeyed(vaults) -> None:
    vault = vaults.create(keystore="passphrase", ask=lambda: "correct horse")
    vault.close()
    path = vault.root / "vault.json"
    path.write_bytes(path.read_bytes().replace(b'"memory_cost":65536', b'"memory_cost":99999999'))
    with pytest.raises(VerificationFailed):
        vaults.open(ask=lambda: pytest.fail("asked for a passphrase"))


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
