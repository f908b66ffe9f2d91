"""The crash sweep: every reopened vault is the old one or the new one; one that breaks its word is noticed (I7).

`make sweep` tries 5,000 points, `make slow` 2,200, this suite a sample of them.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmem.storage.files import Files
from tests.sweep import cuts
from tests.sweep.operations import FRESH, OPERATIONS, OTHER, Place, opened, some_records
from tests.sweep.tracer import works

LEAST = 2000


def sweep(*arguments: str) -> dict[str, Any]:
    """What the sweep's command prints; a process of its own, since it forks."""
    command = [sys.executable, "-m", "tests.sweep", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode in (0, 12), done.stderr
    envelope = json.loads(done.stdout)
    assert envelope["schema"] == "fedmem.sweep/1"
    assert (done.returncode == 12) == (envelope["data"]["bad"] > 0)
    return envelope["data"]


def test_a_sample_of_the_sweep_finds_nothing_bad() -> None:
    data = sweep("--points", "30", "--workers", "1")
    assert (data["points"], data["bad"], data["failures"]) == (30, 0, [])
    assert data["operations"].keys() == OPERATIONS.keys()


@pytest.mark.skipif(bool(works()), reason=works())
def test_a_commit_that_failed_does_not_come_back_after_a_kill() -> None:
    assert sweep("eio-kill/learn/16/10", "--workers", "1")["failures"] == []


@pytest.mark.slow
def test_the_sweep_finds_nothing_bad() -> None:
    data = sweep("--points", "2200")
    assert (data["bad"], data["failures"]) == (0, [])
    if works():
        pytest.skip(f"only {data['points']} points: {works()}")
    assert data["points"] >= LEAST
    assert all(data["operations"].values())
    assert {"cut", "kill", "half", "eio", "full", "read-only", "fs-eio"} <= data["kinds"].keys()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The vault that every point starts from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        return Place.build(tmp_path_factory.mktemp("sweep") / "template")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class NoFolderSync(Files):
    """Renames that nobody makes durable."""

    def sync_folder(self, path: Path) -> None:
        self._hook("fsync-folder", path)


class NoFileSync(Files):
    """Names without bytes."""

    def _write(self, path: Path, data: bytes) -> None:
        self._hook("write", path)
        path.write_bytes(data)
        self._hook("fsync", path)


class InPlace(Files):
    """Files that are overwritten where they lie."""

    def replace(self, path: Path, data: bytes) -> None:
        self._hook("write", path)
        path.write_bytes(data)
        self._hook("fsync", path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self.sync_folder(path.parent)


@pytest.mark.parametrize("kind", [NoFolderSync, NoFileSync, InPlace])
def test_a_careless_file_layer_is_noticed(place: Place, tmp_path: Path, kind: type[Files]) -> None:
    operation = OPERATIONS["seal"]
    watched = place.copy(tmp_path / "w")
    moments = cuts.cuts(watched, operation, kind)
    tried = (cuts.point(watched, operation, cut, kept) for cut in moments[::-1] for kept in cuts.different(cut))
    assert any(run(tmp_path / "scratch") for run in tried)


@pytest.mark.parametrize("name", ["add", "erase", "restore"])
def test_our_file_layer_is_not(place: Place, tmp_path: Path, name: str) -> None:
    watched = place.copy(tmp_path / "w")
    moments = cuts.cuts(watched, OPERATIONS[name])
    tried = [(cut, kept) for cut in moments[:: max(1, len(moments) // 5)] for kept in cuts.different(cut)[:3]]
    for cut, kept in tried:
        assert cuts.point(watched, OPERATIONS[name], cut, kept)(tmp_path / "scratch") == "", cut.before


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_operation_undisturbed_ends_in_its_new_state(place: Place, tmp_path: Path, name: str) -> None:
    copy, operation = place.copy(tmp_path / "c"), OPERATIONS[name]
    with opened(copy) as vault:
        operation.prepare(vault)()
    assert operation.judge(copy, acknowledged=True) == ""


def test_an_acknowledged_write_that_is_not_there_is_bad(place: Place, tmp_path: Path) -> None:
    copy = place.copy(tmp_path / "c")
    assert OPERATIONS["add"].judge(copy, acknowledged=False) == ""
    assert "neither" in OPERATIONS["add"].judge(place.copy(tmp_path / "c"), acknowledged=True)


@pytest.mark.parametrize("name", ["add-second", "erase-second", "add-erased"])
def test_a_vault_without_what_another_writer_acknowledged_is_bad(place: Place, tmp_path: Path, name: str) -> None:
    assert "neither" in OPERATIONS[name].judge(place.copy(tmp_path / "c"), acknowledged=False)


def test_half_a_batch_is_bad(place: Place, tmp_path: Path) -> None:
    copy = place.copy(tmp_path / "c")
    with opened(copy) as vault:
        vault.add_records(some_records(FRESH, 3)[:2])
    assert "neither" in OPERATIONS["add"].judge(copy, acknowledged=False)


def test_an_erasure_that_was_begun_and_not_finished_is_bad(place: Place, tmp_path: Path) -> None:
    stays = replace(OPERATIONS["erase"], after=lambda before: replace(before, erased=before.erased + 1))
    copy = place.copy(tmp_path / "c")
    with opened(copy) as vault:
        stays.prepare(vault)()
    assert "neither" in stays.judge(copy, acknowledged=False)


def test_leftovers_are_bad(place: Place, tmp_path: Path) -> None:
    copy = place.copy(tmp_path / "c")
    (copy.folder / "home" / "slots" / next((copy.folder / "home" / "slots").iterdir()).name / "epoch-9").write_bytes(
        b"k" * 32
    )
    assert "left behind" in OPERATIONS["add"].judge(copy, acknowledged=False)


def test_the_sweep_says_which_point_is_bad_and_ends_with_12(tmp_path: Path) -> None:
    # The same command, with an operation that is acknowledged before anything is written.
    code = (
        "import sys; from dataclasses import replace; from tests.sweep import operations, __main__ as main\n"
        "add = operations.OPERATIONS['add']\n"
        "operations.OPERATIONS.clear()\n"
        "operations.OPERATIONS['add'] = replace(add, prepare=lambda vault: lambda: None)\n"
        "sys.argv = ['sweep', '--points', '3', '--workers', '1']; main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 12, done.stderr
    data = json.loads(done.stdout)["data"]
    assert data["bad"] == data["points"] > 0
    assert "neither the old state nor the new one" in data["failures"][0]
    assert OTHER in {topic for topic, *_ in Place.build(tmp_path / "p").before.records}
