"""A throwaway vault and its keys are gone when the measurement ends, however it ends."""

import pytest

from fedmem import paths
from fedmem.errors import NothingMatched
from fedmem.eval.arms import FORGET, RETAIN
from fedmem.eval.throwaway import Learning, throwaway_vault
from fedmem.routing.embedder import StaticEmbedder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "home"


def test_neither_vault_nor_keys_outlive_the_measurement(release, tmp_path):
    steps = []
    with throwaway_vault(release, StaticEmbedder()) as held:
        held.learn(FORGET, ["a first note", "a second note"], Learning(2, 4, 32), steps.append)
        assert held.sources((FORGET, RETAIN))[RETAIN] == []
        assert len(held.sources((FORGET,))[FORGET]) == 1
        assert held.erase(FORGET)
        assert held.sources((FORGET,)) == {FORGET: []}
        assert held.vault.simulated
        assert [*paths.slots_dir().iterdir()]
    assert steps == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert [*paths.slots_dir().iterdir()] == []


def test_a_failure_leaves_nothing_either(release, tmp_path):
    with pytest.raises(NothingMatched), throwaway_vault(release, StaticEmbedder()) as held:
        held.erase(FORGET)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert [*paths.slots_dir().iterdir()] == []
