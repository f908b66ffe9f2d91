"""Opening what is left of a damaged vault: each fault is named once, and nothing of the vault changes."""

import shutil
from pathlib import Path

import pytest

from fedmem.errors import NothingMatched, Refused, StorageError
from fedmem.vault.backup.salvage import Fault, Remains, open_remains
from tests.vault.test_repair import bytes_under


@pytest.fixture
def root(vaults) -> Path:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    vault.close()
    return vault.root


def faults_of(root: Path) -> list[str]:
    remains = open_remains(root, subject="alice", ask=None)
    remains.close()
    return [fault.part for fault in remains.faults]


def test_a_whole_vault_opens_and_its_keys_go_at_the_end(root: Path) -> None:
    before = bytes_under(root)
    remains = open_remains(root, subject="alice", ask=None)
    assert remains.faults == []
    assert remains.core is not None
    assert len(remains.core.table.keys) == 3
    assert remains.note is not None
    remains.close()
    assert remains.core.table.keys == {}
    assert bytes_under(root) == before


def test_a_lost_header_is_replaced_by_its_copy_beside_the_keys(root: Path, home: Path) -> None:
    (root / "vault.json").unlink()
    remains = open_remains(root, subject="alice", ask=None)
    assert [fault.part for fault in remains.faults] == ["vault.json"]
    assert remains.header is not None
    assert remains.core is not None
    remains.close()
    next(home.rglob("vault.json")).unlink()
    assert faults_of(root) == ["vault.json", "copy of vault.json beside the keys"]


def test_without_keys_or_table_or_database_there_is_no_core(root: Path, home: Path) -> None:
    (root / "vault.db").rename(root.with_name("elsewhere"))
    assert faults_of(root) == ["vault.db"]
    table = (root / "table.fmk").read_bytes()
    (root / "table.fmk").write_bytes(table[:-1] + bytes([table[-1] ^ 1]))
    assert faults_of(root) == ["table.fmk"]
    shutil.rmtree(home)
    assert open_remains(root, subject="alice", ask=None).core is None


def test_no_vault_and_another_subject(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingMatched, match="no vault"):
        open_remains(tmp_path / "absent", subject="alice", ask=None)
    with pytest.raises(Refused, match="another subject"):
        open_remains(root, subject="bob", ask=None)


def test_an_error_becomes_a_fault_and_a_refusal_does_not() -> None:
    remains = Remains()

    def fail(error: Exception) -> None:
        raise error

    assert remains.attempt("keys", lambda: 7) == 7
    assert remains.attempt("keys", lambda: fail(StorageError("The disk refused."))) is None
    assert remains.faults == [Fault("keys", "The disk refused.")]
    with pytest.raises(Refused):
        remains.attempt("keys", lambda: fail(Refused("no")))
    assert len(remains.faults) == 1
