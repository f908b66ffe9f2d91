"""Checkpoints: one for a run, bound to its key, and gone with it."""

from typing import Any

import pytest

from fedmem.errors import StorageError
from fedmem.vault.store.checkpoints import Checkpoints

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
RUN, OTHER_RUN = "ab" * 16, "cd" * 16


@pytest.fixture
def checkpoints(vaults: Any) -> Checkpoints:
    """The checkpoints of a vault, with one of `RUN` after 3 steps."""
    made = Checkpoints(vaults.create().core)
    made.save(RUN, KEY, 3, b"moments")
    return made


def test_the_newest_one_comes_back_with_its_step(checkpoints: Checkpoints) -> None:
    checkpoints.save(RUN, KEY, 5, b"newer moments")
    assert checkpoints.load(RUN, KEY) == (5, b"newer moments")
    assert checkpoints.step(RUN) == 5
    assert b"moments" not in checkpoints.path(RUN).read_bytes()


def test_a_run_without_one_begins_at_its_start(checkpoints: Checkpoints) -> None:
    assert checkpoints.load(OTHER_RUN, KEY) is None
    assert checkpoints.step(OTHER_RUN) == 0


def test_another_key_and_the_checkpoint_of_another_run_open_nothing(checkpoints: Checkpoints) -> None:
    assert checkpoints.load(RUN, OTHER_KEY) is None
    checkpoints.path(OTHER_RUN).write_bytes(checkpoints.path(RUN).read_bytes())
    assert checkpoints.load(OTHER_RUN, KEY) is None


@pytest.mark.parametrize("damage", [b"", b"x" * 200, None])
def test_a_damaged_one_counts_as_missing(checkpoints: Checkpoints, damage: bytes | None) -> None:
    path = checkpoints.path(RUN)
    path.write_bytes(path.read_bytes()[:-1] if damage is None else damage)
    assert checkpoints.load(RUN, KEY) is None


def test_dropping_removes_the_named_ones_only(checkpoints: Checkpoints) -> None:
    checkpoints.save(OTHER_RUN, OTHER_KEY, 1, b"others")
    checkpoints.drop([RUN, "ef" * 16])
    assert checkpoints.load(RUN, KEY) is None
    assert checkpoints.load(OTHER_RUN, OTHER_KEY) == (1, b"others")


def test_a_full_disk_keeps_the_earlier_one(checkpoints: Checkpoints, faults: Any) -> None:
    faults.arm("full", 0)
    with pytest.raises(StorageError):
        checkpoints.save(RUN, KEY, 9, b"lost")
    faults.arm("full", None)
    assert checkpoints.load(RUN, KEY) == (3, b"moments")
