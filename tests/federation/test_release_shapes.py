"""Shapes come from a process of their own, whose errors keep their type."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedmem.errors import FedmemError, NothingMatched, VersionMismatch
from fedmem.federation import release_shapes
from fedmem.federation.device_dp import DevicePlan
from fedmem.federation.rounds import RoundSettings
from fedmem.federation.terms import Agreement, LocalSettings
from tests.eval.invented import make_release

PLAN = DevicePlan(population=1, unsafe_no_dp=True, unsafe_reason="a test")


def terms(release: str, *parts: str) -> Agreement:
    return Agreement(release, parts, PLAN, RoundSettings(), LocalSettings(length=32))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Run `main` here in place of the other process, and note the commands."""
    commands = list[list[str]]()

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        out = io.StringIO()
        monkeypatch.setattr(sys, "argv", command[2:])
        monkeypatch.setattr(sys, "stdin", io.StringIO(options["input"]))
        monkeypatch.setattr(sys, "stdout", out)
        release_shapes.main()
        monkeypatch.undo()
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_shapes_are_those_of_the_named_parts(in_this_process: list[list[str]], tmp_path: Path) -> None:
    release = make_release(tmp_path)
    shapes = release_shapes.shapes_of(release.root, terms(release.digest, "level-2", "generic"))
    spec = release.spec
    assert shapes == {"level-2": (spec.blocks(2), spec.block_size(2)), "generic": (spec.fetch_size,)}
    assert in_this_process == [[sys.executable, "-m", "fedmem.federation.release_shapes", str(release.root)]]


def test_an_error_of_the_other_process_keeps_its_type(in_this_process: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(NothingMatched, match="holds no release"):
        release_shapes.shapes_of(tmp_path, terms("0" * 64, "anchor"))


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("", FedmemError),
        ("Killed", FedmemError),
        (json.dumps({"error": "VersionMismatch", "message": "Fetch the one they name."}), VersionMismatch),
        (json.dumps({"error": "NoSuchError", "message": "?"}), FedmemError),
    ],
)
def test_whatever_the_other_process_writes_is_a_typed_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, output, "a traceback"))
    with pytest.raises(FedmemError) as raised:
        release_shapes.shapes_of(tmp_path, terms("0" * 64, "anchor"))
    assert type(raised.value) is error
