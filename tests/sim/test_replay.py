from pathlib import Path

import pytest

from fedmem.errors import NothingMatched, Refused, UsageError
from fedmem.sim import replay, scenario
from fedmem.sim.folder import RunFolder, write_json
from fedmem.sim.replay import Replay

MINI = Path(__file__).parents[1] / "e2e" / "mini.toml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("FEDMEM_RUNS", str(tmp_path / "runs"))
    made = RunFolder(tmp_path / "runs" / "mini-0001")
    made.create({"id": "0", "scenario": scenario.load(str(MINI)).to_dict(), "seed": 7, "corpus": None})
    return made


def test_a_replay_builds_no_private_record(folder: RunFolder) -> None:
    whole = replay.run.simulation(folder, lambda *_: None).population
    public = Replay(folder.releases / "r", devices=2, rounds=1).sim.population
    assert any(item.declared for device in whole.devices for item in device)
    assert not any(item.declared for device in public.devices for item in device)
    assert public.private_heldout == {}
    shared = [[item for item in device if item.declared is None] for device in whole.devices]
    assert public.devices == shared


def test_a_replay_of_a_users_own_text_is_refused(folder: RunFolder) -> None:
    write_json(folder.state / "inputs.json", folder.inputs() | {"corpus": "/nowhere/diary.jsonl"})
    with pytest.raises(Refused):
        _ = Replay(folder.releases / "r", devices=2, rounds=1).sim


def test_coordinator_and_devices_derive_one_plan(folder: RunFolder) -> None:
    one, other = (Replay(folder.releases / "r", devices=2, rounds=1) for _ in range(2))
    assert one.plan.digest() == other.plan.digest()
    assert (one.plan.population, one.plan.rounds) == (2, 1)
    assert one.plan.unsafe_no_dp


def test_a_run_without_a_release_and_a_wrong_run_config_say_what_to_do(folder: RunFolder) -> None:
    with pytest.raises(NothingMatched, match="release"):
        Replay.of({"release": "", "devices": 2, "rounds": 1})
    with pytest.raises(UsageError, match="devices"):
        Replay.of({"release": "x", "devices": "two", "rounds": 1})
