"""sim compare: the envelope is the comparison, files are new and of a known kind, and bad input has its code."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fedmem.cli.main import main

Call = Callable[..., tuple[Any, dict[str, Any]]]
REASON = "unsafe_no_dp = true: eight devices are too few to hide in"


@pytest.fixture
def runs(home: Path) -> Path:
    """Runs `one` and `two`, which differ in their rounds; and `three`, which has not finished."""
    points = [{"phase": "pretrain", "step": step, "loss": 6.0 / step, "split": "heldout"} for step in (1, 2)]
    data = {
        "scenario": "mini",
        "seed": 7,
        "state": "completed",
        "corpus": "generated",
        "config": {
            "public": {"devices": 4},
            "anchor": {"length": 10},
            "pretrain": {"steps": 2, "batch": 4},
            "federation": {},
        },
        "attribution": ["Leads of an encyclopedia"],
        "loss": {"public": {"fetched": 4.25}, "by_phase": points},
        "epsilon": {"device_delta": 1e-5, "device_reason": REASON, "coordinator_reason": "infinite: it sees updates"},
        "bytes": {"per_device_round": 900, "rounds": [{"up": 800, "down": 200}]},
        "digest": "d" * 64,
        "seconds": {"total": 10.0},
    }
    for name, rounds in {"one": 2, "two": 8, "three": 2}.items():
        run = copy.deepcopy(data)
        run["config"]["federation"]["rounds"] = rounds  # type: ignore[index]
        (home / "runs" / name / "state").mkdir(parents=True)
        (home / "runs" / name / "state" / "inputs.json").write_text(
            json.dumps({"scenario": {"name": "mini"}, "seed": 7})
        )
        (home / "runs" / name / "run.json").write_text(json.dumps(run))
    (home / "runs" / "three" / "run.json").unlink()
    return home / "runs"


def test_the_envelope_is_the_comparison(fedmem: Call, runs: Path) -> None:
    from fedmem.cli.output import plain
    from fedmem.sim.compare import compare

    result, envelope = fedmem("sim", "compare", "one", "two")
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.sim.compare/1")
    assert envelope["data"] == plain(compare(["one", "two"]))
    assert envelope["data"]["differs"] == {"federation.rounds": {"one": 2, "two": 8}}


def test_people_get_tables_the_reason_and_the_attribution(runs: Path) -> None:
    result = CliRunner().invoke(main, ["sim", "compare", "one", "two"])
    assert result.exit_code == 0
    for expected in ("one", "federation.rounds", "4.250", "∞", REASON, "No difference", "Leads of an encyclopedia"):
        assert expected in result.stdout
    assert result.stderr == ""


def test_a_page_and_a_plot_are_written(fedmem: Call, runs: Path, tmp_path: Path) -> None:
    for name, start in (("c.html", "<!doctype html>"), ("c.svg", "<svg ")):
        result, envelope = fedmem("sim", "compare", "one", "two", "--out", str(tmp_path / name))
        assert (result.exit_code, envelope["schema"]) == (0, "fedmem.sim.compare/1")
        assert str(tmp_path / name) in result.stderr
        assert (tmp_path / name).read_text().startswith(start)
        assert "B: two" in (tmp_path / name).read_text()


def test_runs_without_a_curve_have_a_page_and_no_plot(fedmem: Call, runs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = json.loads((runs / name / "run.json").read_text())
        run["loss"]["by_phase"] = []
        (runs / name / "run.json").write_text(json.dumps(run))
    assert fedmem("sim", "compare", "one", "two", "--out", str(tmp_path / "c.svg"))[0].exit_code == 2
    assert fedmem("sim", "compare", "one", "two", "--out", str(tmp_path / "c.html"))[0].exit_code == 0
    assert [path.name for path in tmp_path.glob("c.*")] == ["c.html"]
    assert "<svg" not in (tmp_path / "c.html").read_text()


def test_a_file_that_is_there_stays(fedmem: Call, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "c.html").write_text("mine")
    result, envelope = fedmem("sim", "compare", "one", "two", "--out", str(tmp_path / "c.html"))
    assert (result.exit_code, envelope["data"]["error"]) == (2, "UsageError")
    assert (tmp_path / "c.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["c.png", "c", "nowhere/c.svg"])
def test_another_kind_of_file_or_no_place_for_it(fedmem: Call, runs: Path, tmp_path: Path, name: str) -> None:
    result, envelope = fedmem("sim", "compare", "one", "two", "--out", str(tmp_path / name))
    assert (result.exit_code, envelope["data"]["error"]) == (2, "UsageError")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ((), 2, "UsageError"),
        (("one",), 2, "UsageError"),
        (("one", "one"), 2, "UsageError"),
        (("one", "three"), 2, "UsageError"),
        (("one", "none"), 3, "NothingMatched"),
        (("one", "old"), 9, "VersionMismatch"),
    ],
)
def test_runs_that_cannot_be_compared(fedmem: Call, runs: Path, words: tuple[str, ...], code: int, error: str) -> None:
    (runs / "old" / "state").mkdir(parents=True)
    (runs / "old" / "state" / "inputs.json").write_text("{}")
    (runs / "old" / "run.json").write_text('{"scenario": "mini"}')
    result, envelope = fedmem("sim", "compare", *words)
    assert (result.exit_code, envelope["data"]["error"]) == (code, error)
    assert envelope["data"]["message"]
