"""The release of the tests of `fedmem.eval`."""

import pytest

from fedmem.training.release import Release
from tests.eval.invented import make_release


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("releases"))
