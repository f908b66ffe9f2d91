"""A run of another format is refused with the place of the fault."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedmem.errors import FedmemError, NothingMatched, UsageError, VerificationFailed, VersionMismatch
from fedmem.sim.compare import compare
from tests.sim.finished import Put


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config.public", {}),
        ("config.anchor", None),
        ("loss.public", 5.0),
        ("loss.by_phase", [{"phase": "pretrain", "step": 1, "loss": "5", "split": "heldout"}]),
        ("loss.by_phase", [5]),
        ("epsilon.device", "8"),
        ("epsilon", None),
        ("bytes.rounds", [{"round": 1, "up": True, "down": 2}]),
        ("bytes.rounds", 5),
        ("digest", None),
        ("seed", "7"),
        ("seconds", []),
    ],
)
def test_another_format_is_refused_and_says_where(put: Put, path: str, value: Any) -> None:
    with pytest.raises(VersionMismatch, match=f"its {re.escape(path)}"):
        compare([put("a"), put("b", {path: value})])


def test_no_object_is_another_format(put: Put, tmp_path: Path) -> None:
    put("a"), put("b")
    (tmp_path / "runs" / "b" / "run.json").write_text("[]")
    with pytest.raises(VersionMismatch):
        compare(["a", "b"])


def test_runs_that_cannot_be_compared(put: Put, tmp_path: Path) -> None:
    put("a"), put("b"), put("broken"), put("unfinished")
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    (tmp_path / "runs" / "unfinished" / "run.json").unlink()
    wrong: list[tuple[list[str], type[FedmemError], str]] = [
        ([], UsageError, "two runs"),
        (["a"], UsageError, "two runs"),
        (["a", "b", "a"], UsageError, "named twice"),
        (["a", "unfinished"], UsageError, "has not finished"),
        (["a", "nosuch"], NothingMatched, "There are: "),
        (["a", "../a"], NothingMatched, "no run"),
        (["a", "broken"], VerificationFailed, "damaged"),
    ]
    for names, error, said in wrong:
        with pytest.raises(error, match=said):
            compare(names)
