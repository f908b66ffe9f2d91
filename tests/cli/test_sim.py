"""sim: the envelope is run.json itself, the reason is shown, and bad input has its code."""

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
def finished(home: Path) -> dict[str, Any]:
    """A finished run on disk, as `fedmem.sim` leaves it."""
    data = {
        "name": "quickstart-0001",
        "scenario": "quickstart",
        "seed": 7,
        "state": "completed",
        "attribution": ["Leads of an encyclopedia"],
        "loss": {
            "public": {"anchor": 5.0, "generic": 4.5, "fetched": 4.25, "wrong": 4.75},
            "private": None,
            "by_phase": [{"phase": "pretrain", "step": 1, "loss": 5.0}],
        },
        "epsilon": {"device": None, "device_reason": REASON, "blocks_max": 7.5, "blocks": []},
        "erasure": None,
        "digest": "d" * 64,
        "peak_rss_mb": 812.5,
        "seconds": {"total": 10.0},
    }
    root = home / "runs" / "quickstart-0001"
    (root / "state").mkdir(parents=True)
    (root / "state" / "inputs.json").write_text(json.dumps({"scenario": {"name": "quickstart"}, "seed": 7}))
    (root / "run.json").write_text(json.dumps(data))
    return data


def test_show_is_run_json(fedmem: Call, finished: dict[str, Any]) -> None:
    for words in (("sim", "show"), ("sim", "show", "quickstart-0001")):
        result, envelope = fedmem(*words)
        assert (result.exit_code, envelope) == (0, {"schema": "fedmem.sim.show/1", "data": finished})


def test_show_for_people_repeats_the_reason_and_the_attribution(finished: dict[str, Any]) -> None:
    result = CliRunner().invoke(main, ["sim", "show"])
    assert result.exit_code == 0
    for expected in (REASON, "public.fetched", "4.250", "Leads of an encyclopedia", "d" * 64):
        assert expected in result.stdout


def test_list(fedmem: Call, finished: dict[str, Any]) -> None:
    result, envelope = fedmem("sim", "list")
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.sim.list/1")
    assert [run["name"] for run in envelope["data"]["runs"]] == ["quickstart-0001"]
    assert "quickstart-0001" in CliRunner().invoke(main, ["sim", "list"]).stdout


def test_no_run_and_an_unknown_one(fedmem: Call) -> None:
    assert fedmem("sim", "list")[1]["data"] == {"runs": []}
    for words in (("sim", "show"), ("sim", "show", "none")):
        result, envelope = fedmem(*words)
        assert (result.exit_code, envelope["data"]["error"]) == (3, "NothingMatched")


def test_a_damaged_run(fedmem: Call, finished: dict[str, Any], home: Path) -> None:
    (home / "runs" / "quickstart-0001" / "run.json").write_text("{")
    assert fedmem("sim", "show")[0].exit_code == 6


def test_an_unknown_scenario_names_the_known_ones(fedmem: Call, home: Path) -> None:
    result, envelope = fedmem("sim", "run", "no-such")
    assert (result.exit_code, envelope["data"]["error"]) == (2, "UsageError")
    assert "quickstart" in envelope["data"]["message"]
    assert not home.exists()


def test_a_corpus_that_is_not_there(fedmem: Call, tmp_path: Path) -> None:
    assert fedmem("sim", "run", "quickstart", "--corpus", str(tmp_path / "none"))[0].exit_code == 2


def test_a_corrupt_corpus_line_is_named_and_not_quoted(fedmem: Call, tmp_path: Path) -> None:
    corpus = tmp_path / "mine.jsonl"
    corpus.write_text('{"text": "fine"}\nzebrafinch is no record\n')
    result, envelope = fedmem("sim", "run", "quickstart", "--corpus", str(corpus))
    assert (result.exit_code, envelope["data"]["error"]) == (2, "UsageError")
    assert "line 2" in envelope["data"]["message"]
    assert "zebrafinch" not in result.output


def test_run_gives_what_the_simulation_returns(
    fedmem: Call, monkeypatch: pytest.MonkeyPatch, finished: dict[str, Any], tmp_path: Path
) -> None:
    import fedmem.sim.run as simulation

    asked: dict[str, Any] = {}

    def simulate(scenario: str, **options: Any) -> dict[str, Any]:
        options.pop("progress")("pretrain", 1, 2, "a note")
        asked.update(options, scenario=scenario)
        return finished

    monkeypatch.setattr(simulation, "run_scenario", simulate)
    result, envelope = fedmem("sim", "run", "quickstart", "--seed", "9", "--fresh", "--name", "x", "--workers", "3")
    assert (result.exit_code, envelope) == (0, {"schema": "fedmem.sim.run/1", "data": finished})
    assert "pretrain" in result.stderr
    assert asked == {"scenario": "quickstart", "corpus": None, "seed": 9, "fresh": True, "name": "x", "workers": 3}


@pytest.mark.parametrize("number", ["-1", "257", "two"])
def test_a_number_of_workers_that_is_none(fedmem: Call, number: str) -> None:
    assert fedmem("sim", "run", "quickstart", "--workers", number)[0].exit_code == 2
