"""Seeded keys are for generated text alone; a key of the user's own text is random and destroyed with the run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedmem import paths
from fedmem.errors import Refused
from fedmem.sim import keys
from fedmem.sim.population import PopulationItem


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMEM_HOME", str(tmp_path / "home"))


def run(*, generated: bool, seed: int = 7, name: str = "a", **text: Any) -> Any:
    """A simulation with the parts of it that keys follow from."""
    population = SimpleNamespace(
        generated=generated,
        coordinator=["public"],
        heldout=["held out"],
        devices=[[PopulationItem("mine", "notes")]],
        private_heldout={(0, "notes"): ["mine too"]},
    )
    vars(population).update(text)
    return SimpleNamespace(seed=seed, population=population, folder=SimpleNamespace(inputs=lambda: {"id": name}))


def test_a_key_of_generated_text_follows_from_seed_and_use_and_leaves_no_file() -> None:
    key = keys.derive_run_key(run(generated=True), "block", 1)
    assert len(key) == 32
    assert key == keys.derive_run_key(run(generated=True, name="b"), "block", 1)
    assert key != keys.derive_run_key(run(generated=True), "block", 2)
    assert key != keys.derive_run_key(run(generated=True, seed=8), "block", 1)
    assert not (paths.slots_dir() / "runs").exists()


def test_a_key_of_the_users_text_is_of_its_run_alone_and_the_same_when_resumed() -> None:
    key = keys.derive_run_key(run(generated=False), "block")
    assert key == keys.derive_run_key(run(generated=False, seed=8), "block")
    assert key != keys.derive_run_key(run(generated=False, name="b"), "block")
    assert key != keys.derive_run_key(run(generated=True), "block")


@pytest.mark.parametrize(
    "change",
    [
        {"coordinator": ["other"]},
        {"heldout": []},
        {"devices": [[PopulationItem("mine")]]},
        {"devices": [[PopulationItem("mine", "notes")], []]},
        {"private_heldout": {(1, "notes"): ["mine too"]}},
    ],
)
def test_a_run_goes_on_only_with_the_text_that_its_key_is_bound_to(change: dict[str, Any]) -> None:
    keys.bind_corpus(run(generated=False))
    keys.bind_corpus(run(generated=False))
    with pytest.raises(Refused, match="--fresh"):
        keys.bind_corpus(run(generated=False, **change))


def test_generated_text_is_bound_to_nothing() -> None:
    keys.bind_corpus(run(generated=True))
    keys.bind_corpus(run(generated=True, coordinator=["other"]))
    assert not (paths.slots_dir() / "runs").exists()


def test_after_the_run_key_and_binding_are_gone_and_a_new_key_is_another() -> None:
    key = keys.derive_run_key(run(generated=False), "block")
    keys.bind_corpus(run(generated=False))
    keys.destroy_key(run(generated=False))
    assert list((paths.slots_dir() / "runs").iterdir()) == []
    keys.destroy_key(run(generated=False))
    assert keys.derive_run_key(run(generated=False), "block") != key
