"""The toy federation, a small simulation, finished runs, and chats of invented people."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmem.sim.context import Simulation
from fedmem.sim.folder import RunFolder
from fedmem.sim.sources import chats
from tests.federation.conftest import toy
from tests.sim.finished import Put, run_json
from tests.sim.people import LONG, message, talk
from tests.sim.small import start

__all__ = ["put", "toy"]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Write a run folder; `changes` are values by dotted path."""
    monkeypatch.setenv("FEDMEM_RUNS", str(tmp_path / "runs"))

    def write(name: str, changes: dict[str, Any] | None = None, *, seed: int = 7, source: str | None = None) -> str:
        run = run_json(seed)
        for path, value in (changes or {}).items():
            *steps, last = path.split(".")
            place = run
            for step in steps:
                place = place[step]
            place[last] = value
        root = tmp_path / "runs" / name
        (root / "state").mkdir(parents=True)
        inputs = {"scenario": run["config"], "seed": seed, "corpus": source}
        (root / "state" / "inputs.json").write_text(json.dumps(inputs))
        (root / "run.json").write_text(json.dumps(run))
        return name

    return write


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty people in pairs, each pair with three conversations; the person of number n writes n words more."""
    talks = {}
    for pair in range(10):
        one, other = f"p{2 * pair:02d}", f"p{2 * pair + 1:02d}"
        for n in range(3):
            mine, theirs = (f"{LONG} {who} {n} " + "word " * int(who[1:]) for who in (one, other))
            talks[f"t{pair}-{n}"] = talk(f"2018-01-0{n + 1}", message(one, mine, 1), message(other, theirs, 2))
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(talks), encoding="utf-8")
    monkeypatch.setattr(chats, "package_file", lambda *_: path)
    return path


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """A simulation after its first release; tests only read it."""
    return start(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture
def sim(started: Simulation, tmp_path: Path) -> Simulation:
    """A copy of it that a test may change."""
    root = tmp_path / "runs" / "small"
    shutil.copytree(started.folder.root, root)
    copy = replace(started, folder=RunFolder(root))
    vars(copy).update({name: vars(started)[name] for name in ("population", "placed", "embedder", "policy")})
    return copy
