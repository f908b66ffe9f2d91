"""The anchor and the bank of the coordinator's tests, and the toy federation of the tests of `fedmem.federation`."""

from pathlib import Path

import pytest

from fedmem.coordinator.build import Facts, build_bank, train_anchor
from fedmem.training.release import Release
from fedmem.training.state import Watch
from tests.coordinator.workplace import ANCHOR, BANK, CORPUS, EMBEDDER
from tests.federation.conftest import toy

__all__ = ["anchor", "release", "toy"]


@pytest.fixture(scope="session")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Facts]:
    """A trained anchor: its folder, and the facts of its training."""
    folder = tmp_path_factory.mktemp("anchor")
    return folder, train_anchor(CORPUS, folder, ANCHOR, Watch())


@pytest.fixture(scope="session")
def release(anchor: tuple[Path, Facts], tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release with this anchor and a new bank."""
    return build_bank(CORPUS, anchor[0], tmp_path_factory.mktemp("bank"), BANK, EMBEDDER)
