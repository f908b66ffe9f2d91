"""One small run of the whole main job, shared by the tests that look at it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MINI = Path(__file__).with_name("mini.toml")


def quiet(*_: object) -> None:
    """A progress callback that says nothing."""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own for all runs of this session."""
    folder = tmp_path_factory.mktemp("home")
    before = {name: os.environ.get(name) for name in ("FEDMEM_HOME", "FEDMEM_RUNS")}
    os.environ["FEDMEM_HOME"] = str(folder)
    os.environ.pop("FEDMEM_RUNS", None)
    yield folder
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def mini_run(home: Path) -> dict[str, Any]:
    """`run.json` of a finished run of tests/e2e/mini.toml."""
    from fedmem.sim.run import run_scenario

    return run_scenario(str(MINI), corpus=None, seed=None, fresh=True, name="mini", progress=quiet)
