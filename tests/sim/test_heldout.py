"""Held-out text by where a release lies: a run's, a training's on the installed corpus, or none."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedmem.policy.policy import Policy
from fedmem.sim import heldout, population, scenario
from fedmem.sim.folder import RunFolder
from fedmem.sim.heldout import load_heldout
from fedmem.sim.sources import wikipedia
from fedmem.sim.sources.texts import public_texts
from fedmem.training.corpus import Corpus


def run_of(root: Path, corpus: Path | None) -> Path:
    """A run's folder with its inputs, and where a release would lie in it."""
    inputs: dict[str, Any] = {"id": "0", "scenario": scenario.load("quickstart").to_dict(), "seed": 7}
    RunFolder(root).create(inputs | {"corpus": str(corpus) if corpus else None})
    return root / "releases" / "digest"


def test_text_of_a_run_is_what_it_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[str] = []
    monkeypatch.setattr(population, "_private_texts", lambda *_: generated.append("private") or ["x"] * 500)
    found = load_heldout(run_of(tmp_path / "run", None))
    assert generated == []  # what is private is not generated for it
    whole = population.build(scenario.load("quickstart"), 7, None, Policy.load())
    assert len(found) == len(set(found)) == heldout.MOST_TEXTS
    assert set(found) <= set(whole.heldout)
    assert not set(found) & {*whole.coordinator, *(item.text for items in whole.devices for item in items)}


def test_text_of_the_user_that_is_gone(tmp_path: Path) -> None:
    assert load_heldout(run_of(tmp_path / "run", tmp_path / "gone.jsonl")) == []


@pytest.mark.parametrize("same", [True, False])
def test_text_of_a_training_is_the_corpus_s_own(tmp_path: Path, same: bool) -> None:
    corpus = Corpus.of(public_texts("wikipedia")[0])
    inputs = {"command": "bank train", "corpus": corpus.digest if same else "0" * 64}
    (tmp_path / "training.json").write_text(json.dumps({"inputs": inputs}))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "inputs.json").write_text(json.dumps({"id": "0"} | inputs))
    found = load_heldout(tmp_path / "releases" / "digest")
    assert (len(found), set(found) <= set(corpus.heldout)) == (heldout.MOST_TEXTS if same else 0, True)


def test_without_the_package_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia, "MODULE", "no_such_module")
    assert load_heldout(run_of(tmp_path / "run", None)) == []


def test_a_training_that_has_not_ended(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "inputs.json").write_text(json.dumps({"id": "0", "command": "bank train"}))
    assert load_heldout(tmp_path / "releases" / "digest") == []


def test_a_release_that_lies_elsewhere(tmp_path: Path) -> None:
    assert load_heldout(tmp_path / "somewhere" / "digest") == []
