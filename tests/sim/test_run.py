"""A run's phases are in their order, its folder is found or refused, and its guarantees are checked."""

from pathlib import Path
from typing import Any

import pytest

from fedmem import paths
from fedmem.errors import Busy, Refused, UsageError, VerificationFailed
from fedmem.sim import run as module
from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder, read_json
from fedmem.sim.run import check_guarantees, load_simulation, phases_of, run_scenario
from fedmem.storage.locks import WriterLock
from tests.sim.small import small_scenario

SUMMARY = {
    "name": "a",
    "loss": {"private": {"with": 4.0, "without": 5.0, "after_erasure": 5.0}},
    "erasure": {"verified": True},
    "residue": {"before": 0, "after": 0},
}


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: Simulation) -> list[str]:
    """Phases that note their names instead of their work; a name in `executed.broken` raises."""
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDMEM_RUNS", raising=False)

    class Names(list[str]):
        broken = ""

    names = Names()

    def phases(scenario: Any) -> dict[str, Any]:
        def phase(name: str) -> Any:
            def execute(sim: Simulation) -> dict[str, Any]:
                if name == names.broken:
                    raise KeyboardInterrupt
                names.append(name)
                return {"of": name}

            return execute

        return {name: phase(name) for name in ("prepare", "private", "erase")}

    monkeypatch.setattr(module, "phases_of", phases)
    monkeypatch.setattr(
        module, "summarise_run", lambda sim: SUMMARY | {"name": sim.folder.name, "workers": sim.workers}
    )
    monkeypatch.setattr(module, "write_report", lambda data, path: path.write_text("report"))
    monkeypatch.setattr(Simulation, "population", started.population)
    return names


def go(**options: Any) -> dict[str, Any]:
    chosen = {"corpus": None, "seed": None, "fresh": False, "name": None, "progress": lambda *_: None}
    return run_scenario(small_scenario(), **(chosen | options))


def test_rounds_before_the_first_release_come_before_private_learning_and_the_others_after_it() -> None:
    assert list(phases_of(small_scenario(releases=3))) == [
        "prepare", "pretrain", "cotrain", "rounds_1", "private", "rounds_2", "rounds_3", "evaluate", "erase",
    ]  # fmt: skip


def test_each_phase_is_executed_once_and_the_results_are_written_last(executed: list[str]) -> None:
    data = go(workers=3)
    folder = RunFolder(paths.runs_dir() / data["name"])
    assert executed == ["prepare", "private", "erase"]
    assert {name: facts["of"] for name, facts in folder.facts().items()} == {name: name for name in executed}
    assert read_json(folder.run_json) == data
    assert data["workers"] == 3
    assert folder.report.read_text() == "report"


def test_a_run_that_broke_off_goes_on_with_the_phase_that_it_was_in(executed: Any) -> None:
    executed.broken = "private"
    with pytest.raises(KeyboardInterrupt):
        go()
    executed.broken = ""
    data = go(workers=1)
    assert executed == ["prepare", "private", "erase"]
    assert [path.name for path in paths.runs_dir().iterdir()] == [data["name"]]


def test_a_fresh_run_and_one_of_another_seed_get_folders_of_their_own(executed: Any) -> None:
    executed.broken = "erase"
    for options in ({}, {"fresh": True}, {"seed": 8}):
        with pytest.raises(KeyboardInterrupt):
            go(**options)
    assert sorted(path.name for path in paths.runs_dir().iterdir()) == [f"mini-000{n}" for n in (1, 2, 3)]


def test_a_name_that_is_taken_is_refused(executed: list[str]) -> None:
    go(name="a")
    assert go(name="a")["name"] == "a"
    assert executed == ["prepare", "private", "erase"]
    with pytest.raises(UsageError, match="other inputs"):
        go(name="a", seed=8)
    with pytest.raises(UsageError, match="another name"):
        go(name="a", fresh=True)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "-x", "a b", "a\n"])
def test_a_name_that_is_no_file_name_is_refused(executed: list[str], name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        go(name=name)
    assert not paths.runs_dir().exists()


def test_two_processes_do_not_execute_one_run(executed: Any) -> None:
    executed.broken = "private"
    with pytest.raises(KeyboardInterrupt):
        go(name="a")
    lock = WriterLock(paths.runs_dir() / "a" / "run.lock", "run")
    with pytest.raises((Busy, Refused)):
        go(name="a")
    lock.release()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"residue": {"before": 1, "after": 0}}, "lies in the clear"),
        ({"residue": {"before": 0, "after": 2}}, "lies in the clear"),
        ({"erasure": {"verified": False}}, "does not verify"),
        ({"loss": {"private": {"without": 5.0, "after_erasure": 4.9999999}}}, "still answers"),
        ({"loss": {"private": {"without": 5.0, "after_erasure": None}}}, "still answers"),
    ],
)
def test_a_guarantee_that_does_not_hold_is_named(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(VerificationFailed, match=fault):
        check_guarantees(SUMMARY | change)


@pytest.mark.parametrize(
    "change", [{}, {"erasure": None, "loss": {"private": None}, "residue": {"before": 0, "after": None}}]
)
def test_a_run_that_keeps_its_guarantees_passes(change: dict[str, Any]) -> None:
    check_guarantees(SUMMARY | change)


def test_a_simulation_is_loaded_from_the_inputs_in_its_folder(started: Simulation) -> None:
    sim = load_simulation(RunFolder(started.folder.root), lambda *_: None)
    assert (sim.scenario, sim.seed, sim.corpus) == (started.scenario, 7, None)
