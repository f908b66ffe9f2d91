"""The benchmark of a growing vault: it measures real vaults, and each of its targets can fail."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import vault
from fedmem.vault.vault import ALL
from tests.sweep import tracer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize("batch", [20, 7])
def test_a_vault_grows_to_its_records_and_blocks(home: Path, batch: int) -> None:
    with vault.grown(home / "v", 20, batch) as opened:
        records = opened.records(ALL)
        assert (len(records), len(opened.blocks())) == (20, 2)
        assert sorted({str(record.topic) for record in records}) == [f"area {number}" for number in range(10)]
        assert all(np.linalg.norm(record.vector) == pytest.approx(1, abs=1e-6) for record in records)


def test_figures_of_two_sizes(tmp_path: Path) -> None:
    data = vault.every_size(tmp_path, (20, 60), 0, 2, 3)
    assert (data["records"], data["blocks"], data["trainings"]) == (60, 6, 3)
    assert data["by_records"].keys() == {"20"}
    small = data["by_records"]["20"]
    assert small["records"] == 20
    assert {*vault.LIMITS, "erase_record_3_trainings_ms", "open_to_read_ms", "search_after_add_ms"} <= data.keys()
    assert all(small[name] > 0 and data[name] > 0 for name in vault.LIMITS)
    assert data["receipt_kb"] > small["receipt_kb"]
    assert data["wall_ms"].keys() >= {"add", "search", "erase_record", "open", "erase_subject"}
    for name, value in data["ratio"].items():
        low, high = data["interval"][f"ratio.{name}"]
        assert low <= value <= high
    if not tracer.works():
        assert data["syncs"]["erase_record"] > data["syncs"]["add"] > 0


def test_the_floor_stores_what_it_is_given(tmp_path: Path) -> None:
    records = vault.new_records(8, 0)
    floor = vault.Floor(tmp_path / "f.db", np.stack([record.vector for record in records]))
    floor.add(records[0])
    (size,) = floor._rows.execute("SELECT length(cell) FROM t").fetchone()
    assert size == 12 + len(records[0].text.encode()) + 4 * vault.DIMENSIONS + 16
    assert 3 in floor.search(records[3].vector)
    floor.close()


GOOD = vault.LIMITS | {"erase_record_600_trainings_ms": 70.0}


def test_a_vault_at_its_limits_is_good() -> None:
    assert all(vault.checks(GOOD).values())


@pytest.mark.parametrize("name", vault.LIMITS)
def test_each_target_can_fail(name: str) -> None:
    failed = [check for check, holds in vault.checks(GOOD | {name: vault.LIMITS[name] * 1.01}).items() if not holds]
    assert failed == [f"{name}_within_limit"]


def test_an_erasure_that_reads_the_whole_ledger_is_noticed() -> None:
    bad = GOOD | {"erase_record_ms": 50.0, "erase_record_600_trainings_ms": 70.0}
    assert [check for check, holds in vault.checks(bad).items() if not holds] == ["erasure_independent_of_the_ledger"]
