"""A device trains on its shareable texts, on the release that the terms name and on no other."""

from pathlib import Path

import numpy as np
import pytest

from fedmem.errors import NothingMatched, VersionMismatch
from fedmem.federation.device import TrainConfig
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.local_training import load_federated_part, make_release_train
from fedmem.federation.rounds import RoundSettings
from fedmem.federation.terms import Agreement, LocalSettings
from fedmem.training.release import Release
from tests.eval.invented import FACTS, make_release

PLAN = DevicePlan(population=1, rounds=2, unsafe_no_dp=True, unsafe_reason="a test")
TEXTS = [" ".join(pair) for pairs in FACTS.values() for pair in pairs][:4]
CONFIG = TrainConfig(1, 5, steps=1, batch=2, learning_rate=0.01, memory_learning_rate=0.1)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("releases"))


def terms(release: Release, *parts: str, digest: str = "", final: float = 1.0) -> Agreement:
    local = LocalSettings(length=32, final=final)
    return Agreement(digest or release.digest, parts, PLAN, RoundSettings(steps=1), local)


def test_only_the_named_parts_are_federated_and_they_move(release: Release) -> None:
    agreement = terms(release, "level-1", "generic")
    start = load_federated_part(release.root, agreement).params()
    assert set(start) == {"level-1", "generic"}
    end = make_release_train(release.root, agreement, lambda: TEXTS)(start, CONFIG)
    assert {name: value.shape for name, value in end.items()} == {name: value.shape for name, value in start.items()}
    assert (end["level-1"] != start["level-1"]).any()


def test_training_is_a_function_of_parameters_texts_and_seed(release: Release) -> None:
    agreement = terms(release, "level-1")
    start = load_federated_part(release.root, agreement).params()
    first, again, other = (
        make_release_train(release.root, agreement, lambda texts=texts: texts)(start, CONFIG)["level-1"]
        for texts in (TEXTS, TEXTS, TEXTS[::-1][:2])
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_a_device_without_texts_changes_nothing(release: Release) -> None:
    agreement = terms(release, "anchor", "level-2")
    start = load_federated_part(release.root, agreement).params()
    end = make_release_train(release.root, agreement, lambda: ())(start, CONFIG)
    assert all(np.array_equal(end[name], start[name]) for name in start)


def test_the_rate_of_the_terms_falls_to_its_final_part(release: Release) -> None:
    agreement = terms(release, "level-1", final=0.0)
    start = load_federated_part(release.root, agreement).params()
    last = TrainConfig(2, 5, steps=1, batch=2, learning_rate=0.01, memory_learning_rate=0.1)
    end = make_release_train(release.root, agreement, lambda: TEXTS)(start, last)
    assert np.array_equal(end["level-1"], start["level-1"])


def test_texts_are_asked_for_when_a_round_begins_and_their_error_is_raised(release: Release) -> None:
    def gone() -> list[str]:
        raise NothingMatched("No vault process listens.")

    train = make_release_train(release.root, terms(release, "generic"), gone)
    with pytest.raises(NothingMatched, match="listens"):
        train({}, CONFIG)


def test_another_release_than_the_terms_name_is_refused(release: Release, tmp_path: Path) -> None:
    other = terms(release, "anchor", digest="0" * 64)
    with pytest.raises(VersionMismatch, match="another release"):
        load_federated_part(release.root, other)
    with pytest.raises(VersionMismatch):
        make_release_train(release.root, other, lambda: TEXTS)({}, CONFIG)
    with pytest.raises(NothingMatched):
        load_federated_part(tmp_path, terms(release, "anchor"))
