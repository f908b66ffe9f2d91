"""Runs are found by name or as the last one, and reading them changes nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from fedmem.errors import NothingMatched, VerificationFailed
from fedmem.sim import runs
from fedmem.sim.folder import RunFolder, write_json


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a run; each is newer than the one before it."""
    monkeypatch.setenv("FEDMEM_RUNS", str(tmp_path / "runs"))
    ages = iter(range(10**6))

    def make(name: str, seed: int = 7, *, finished: bool = False) -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / name)
        folder.create({"id": name, "scenario": {"name": "mini"}, "seed": seed, "corpus": None})
        age = next(ages)
        os.utime(folder.state / "inputs.json", (age, age))
        folder.finish_phase("prepare", {"seconds": 1})
        if finished:
            write_json(folder.run_json, {"name": "elsewhere", "scenario": "mini", "seed": seed, "state": "completed"})
        return folder

    return make


def test_without_a_run_there_is_none_and_it_says_how_to_make_one(put: Any) -> None:
    assert runs.run_folders() == runs.list_runs() == []
    with pytest.raises(NothingMatched, match=r"There is no run yet\. `fedmem sim run quickstart`"):
        runs.find_run(None)
    assert runs.find_unfinished({"id": ""}) is None


def test_runs_are_in_the_order_of_their_making_and_the_last_is_the_default(put: Any) -> None:
    put("b"), put("a")
    assert [folder.name for folder in runs.run_folders()] == ["b", "a"]
    assert runs.find_run(None).name == "a"
    assert runs.find_run("b").name == "b"
    with pytest.raises(NothingMatched, match=r"There is no run c\. There are: b, a\."):
        runs.find_run("c")


@pytest.mark.parametrize("name", ["../runs/a", ".", "", "a/"])
def test_only_the_name_of_a_run_finds_it(put: Any, name: str) -> None:
    put("a")
    with pytest.raises(NothingMatched):
        runs.find_run(name)


def test_a_folder_in_the_making_is_no_run(put: Any, tmp_path: Path) -> None:
    put("a")
    (tmp_path / "runs" / ".making-x" / "state").mkdir(parents=True)
    (tmp_path / "runs" / ".making-x" / "state" / "inputs.json").write_text("{}")
    (tmp_path / "runs" / "notes").mkdir()
    assert [folder.name for folder in runs.run_folders()] == ["a"]


def test_an_unfinished_run_shows_its_inputs_and_a_finished_one_its_results(put: Any) -> None:
    put("a"), put("b", finished=True)
    assert runs.load_run("a") == {
        "name": "a", "scenario": "mini", "seed": 7, "state": "unfinished", "phases_done": ["prepare"],
    }  # fmt: skip
    assert runs.load_run()["state"] == "completed"
    assert [row["state"] for row in runs.list_runs()] == ["unfinished", "completed"]


def test_a_damaged_run_is_named(put: Any) -> None:
    put("a").run_json.write_text("{")
    with pytest.raises(VerificationFailed, match=r"run\.json in a is damaged"):
        runs.load_run("a")


def test_only_an_unfinished_run_of_the_same_inputs_goes_on(put: Any) -> None:
    put("old"), put("new"), put("other", seed=8), put("done", finished=True)
    inputs = {"id": "random", "scenario": {"name": "mini"}, "seed": 7, "corpus": None}
    assert runs.find_unfinished(inputs).name == "new"
    assert runs.find_unfinished(inputs | {"corpus": "/a.jsonl"}) is None


def test_the_first_free_number_is_taken(put: Any) -> None:
    put("mini-0001"), put("mini-0003")
    assert runs.find_free_name("mini") == "mini-0002"
    put("mini-0002")
    assert runs.find_free_name("mini") == "mini-0004"


def test_the_last_release_is_the_newest_of_the_last_run(put: Any) -> None:
    folder = put("a")
    with pytest.raises(NothingMatched, match="no release yet"):
        runs.find_last_release()
    for age, name in enumerate(("9f", "0a")):
        (folder.releases / name).mkdir()
        (folder.releases / name / "release.json").touch()
        os.utime(folder.releases / name / "release.json", (age, age))
    assert runs.find_last_release() == folder.releases / "0a"
