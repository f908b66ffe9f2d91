"""What a real run writes is what a comparison reads: a change of `run.json` that it does not follow fails here."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedmem.sim.compare import compare
from fedmem.sim.compare_page import render_page
from fedmem.sim.compare_tables import make_tables


def test_a_real_run_beside_its_copy(
    mini_run: dict[str, Any], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "state").mkdir(parents=True)
        for file in ("run.json", "state/inputs.json"):
            shutil.copy(home / "runs" / "mini" / file, tmp_path / name / file)
    monkeypatch.setenv("FEDMEM_RUNS", str(tmp_path))
    data = compare(["one", "two"])
    row, config = data["runs"][0], mini_run["config"]
    assert (data["differs"], data["differences"]) == ({}, [])
    assert any("equal digests" in note for note in data["notes"])
    assert row["loss"]["public"] == mini_run["loss"]["public"]
    assert len(row["curve"]) == len(mini_run["loss"]["by_phase"])
    f, length = config["federation"], config["anchor"]["length"]
    central = sum(config[phase]["steps"] * config[phase]["batch"] * length for phase in ("pretrain", "cotrain"))
    rounds = config["public"]["devices"] * f["rounds"] * f["releases"] * f["steps"] * f["batch"] * length
    assert row["curve"][-1]["tokens"] == central + rounds
    assert {table.id for table in make_tables(data)} == {"runs", "loss", "privacy", "bytes", "cost"}
    assert "one and two" in render_page(data)
