"""anchor train: what it leaves, and how bad input ends."""

import json
from pathlib import Path

from tests.cli.conftest import TINY, call, made


def test_an_anchor_leaves_its_model_curve_and_report(work: dict[str, Path]) -> None:
    folder = work["anchor"]
    assert {path.name for path in folder.iterdir()} == {
        *("anchor", "tokenizer.json", "training.json", "report.html", "state"),
    }
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert "The user's own public text." in page.replace("&#39;", "'")
    facts = json.loads((folder / "training.json").read_text())
    assert facts["inputs"]["preset"] == "nano"
    assert facts["tokens_per_second"] > 0


def test_the_same_command_continues_and_another_one_is_refused(work: dict[str, Path]) -> None:
    words = ("anchor", "train", work["corpus"], "--out", work["anchor"], "--preset", "nano", "--vocabulary", 300, *TINY)
    before = (work["anchor"] / "training.json").read_bytes()
    assert made(*words)["inputs"]["preset"] == "nano"
    assert (work["anchor"] / "training.json").read_bytes() == before
    result, envelope = call(*map(str, words), "--seed", "8")
    assert (result.exit_code, envelope["data"]["error"]) == (9, "VersionMismatch")
