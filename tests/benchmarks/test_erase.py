"""The erasure benchmark: its vaults are vaults, its figures have intervals, and its checks can fail."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from benchmarks import erase, residues
from fedmem import erasure


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    return tmp_path


def test_a_filled_vault_opens_and_holds_its_blocks(home: Path) -> None:
    erase.filled(home / "v", 7).close()
    with erase.Vault.open(home / "v", subject="benchmark") as vault:
        assert len(vault.blocks()) == 7
        block = erase.give(vault, b"rows")
        assert len(vault.blocks()) == 8
        erase.erase(vault)
        assert len(vault.blocks()) == 7
        assert block not in vault.core.table.keys
        assert erasure.verify(vault, erasure.status(vault)[0].id, deep=True).is_clean


def test_the_table_alone_is_written_under_a_new_key_and_erases_nothing(home: Path) -> None:
    with erase.filled(home / "v", 3) as vault:
        epoch, generation = vault.core.table.epoch, vault.generation
        erase.rewrite(vault)
        assert (vault.core.table.epoch, vault.generation, len(vault.blocks())) == (epoch + 1, generation, 3)


def test_figures_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase, "BATCH", 1)
    monkeypatch.setattr(erase, "LENGTH", 8)
    monkeypatch.setattr(erase, "RECORDS", 4)
    monkeypatch.setattr(erase, "RECORD_LENGTH", 8)
    data = erase.measured(tmp_path, quick=True, few=3, many=6)
    assert data["block_bytes"] - 768 * 1024 in range(200)
    assert data["ratio"].keys() == {"blocks_10000_over_100", "retrain_over_erase", "retrain_anchor_over_erase"}
    for name, (low, high) in data["interval"].items():
        value = data["ratio"][name.removeprefix("ratio.")] if name.startswith("ratio.") else data[name]
        assert low <= value <= high
    assert data["residue"]["fedmem"] == data["residue_once_closed"]["fedmem"] == 0
    assert data["residue"]["planted_copy"] == 1
    good = data | {"crash": {"points": 1, "bad": 0}}
    assert {name for name, holds in erase.checks(good).items() if not holds} <= TIMED
    for path, value, check in BROKEN:
        bad = good | ({path[0]: value} if len(path) == 1 else {path[0]: good[path[0]] | {path[1]: value}})
        assert not erase.checks(bad)[check]


TIMED = {"erase_within_limit", "growth_within_limit", "faster_than_retraining", "open_within_limit"}
BROKEN = [
    (("erase_ms_beside_fsync",), 101.0, "erase_within_limit"),
    (("open_verify_attach_ms",), 5.1, "open_within_limit"),
    (("ratio", "blocks_10000_over_100"), 1.4, "growth_within_limit"),
    (("ratio", "retrain_over_erase"), 999.0, "faster_than_retraining"),
    (("residue", "fedmem"), 1, "nothing_left"),
    (("residue_once_closed", "fedmem"), 1, "nothing_left"),
    (("residue", "planted_copy"), 0, "planted_copy_found"),
    (("crash", "bad"), 1, "no_bad_crash"),
]


def test_growth_is_that_of_what_is_not_the_table() -> None:
    turns = np.ones(9)
    seconds = {"erase_few": 30 * turns, "table_few": 2 * turns, "erase_many": 70 * turns, "table_many": 42 * turns}
    assert erase.growth(seconds) == (1.0, [1.0, 1.0])
    assert erase.growth(seconds | {"erase_many": 98 * turns})[0] == 2.0


def test_a_plain_log_keeps_what_was_deleted_and_a_vault_does_not(home: Path) -> None:
    assert residues.counts("sqlite_wal", home / "sqlite")["open"] == residues.NOTES
    assert residues.counts("fedmem", home / "fedmem") == {"open": 0, "closed": 0}
    assert set(residues.installed()) >= {"fedmem", "planted_copy", "sqlite_wal"}


@pytest.mark.parametrize("part", ["text", "vector"])
def test_a_note_is_found_by_its_text_and_by_two_neighbours_of_its_vector(tmp_path: Path, part: str) -> None:
    texts, vectors_ND = residues.notes()
    leak = texts[3].encode() if part == "text" else vectors_ND[3, 20:22].tobytes()
    (tmp_path / "file").write_bytes(b".." + leak)
    assert residues.found(tmp_path) == 1


def test_a_store_that_does_not_delete_is_no_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect

    class Keeps(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            return super().execute(statement.replace("DELETE FROM notes", "SELECT 1"), *values)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=Keeps, **options))
    with pytest.raises(RuntimeError, match="did not delete"):
        residues.counts("sqlite_wal", tmp_path / "s")
