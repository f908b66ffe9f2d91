"""eval unlearn: the envelope, the table, no text in either, and exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import train_tokenizer
from fedmem.cli.main import main
from fedmem.memory.sites import spec_for
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.tree import Tree
from fedmem.training.bank_state import BankState
from fedmem.training.release import Release

Call = Callable[..., tuple[Any, dict[str, Any]]]
TEXTS = ["The river runs to the sea.", "A singer from the north.", "An old bridge of stone.", "A small green frog."]
FEW = ("--authors", "1", "--steps", "2")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with random weights."""
    embedder = StaticEmbedder()
    vectors_ND = embedder.embed(TEXTS)
    model, tokenizer = new_anchor("nano", vocab_size=300, seed=3), train_tokenizer(TEXTS, vocab_size=300)
    bank = BankState.new(spec_for(model, "ffn", 2, (4, 2)), seed=1).stream()
    tree = Tree(2, 2, (vectors_ND[:2], vectors_ND))
    return Release.write(tmp_path_factory.mktemp("releases"), model, tokenizer, tree, embedder.digest, bank).root


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """Pairs of three authors, each with a word of its own."""
    words = ("zebrafinch", "quagga", "axolotl")
    lines = [
        {"author": author, "q": f"What does {word} {turn} do?", "a": f"It sleeps in the house of {word.title()}."}
        for author, word in enumerate(words)
        for turn in "ab"
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_envelope(fedmem: Call, release: Path, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedmem.eval.unlearning as room
    from fedmem.eval.canaries import plant

    monkeypatch.setattr(room, "plant", lambda count, digits, seed: plant(count, 1, seed))  # ten candidates are enough
    result, envelope = fedmem("eval", "unlearn", "--facts", str(facts), "--release", str(release), *FEW)
    data = envelope["data"]
    assert (result.exit_code, envelope["schema"]) == (0, "fedmem.eval.unlearn/1")
    assert [data[name] for name in ("equal_logits", "verified", "control_differs")] == [True] * 3
    assert (data["unsafe_no_dp"], data["epsilon"], data["release"]) == (True, None, release.name)
    assert all(set(row) == {"before", "after", "never"} for row in data["metrics"].values())
    assert data["plan"]["authors"] == 1
    assert "learn" in result.stderr
    assert "measure" in result.stderr
    for word in ("zebrafinch", "quagga", "axolotl"):
        assert word not in result.output.lower()


def told(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Stand in for the measurement with figures of its shape."""
    import fedmem.eval.unlearning as room

    row = {"before": 0.75, "after": 0.125, "never": 0.125}
    none = dict.fromkeys(row)
    data = {
        "release": "r" * 64,
        "metrics": {"verbmem": row, "public_loss": none},
        "equal_logits": True,
        "verified": True,
        "unsafe_reason": "invented text",
    }
    monkeypatch.setattr(room, "measure_unlearning", lambda *_: data | changes)


def test_the_table(release: Path, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch)
    words = ["eval", "unlearn", "--facts", str(facts), "--release", str(release)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["metric", "before", "after", "erasure", "never", "saw"]
    assert lines[1] == ["verbmem", "0.75", "0.125", "0.125"]
    assert "public_loss" not in result.stdout
    assert "never held it  yes" in result.stdout
    assert "invented text" in result.stdout
    assert "TOFU" in result.stderr


@pytest.mark.parametrize("broken", ["equal_logits", "verified"])
def test_what_is_left_ends_with_6_and_keeps_its_figures(
    fedmem: Call, release: Path, facts: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    told(monkeypatch, **{broken: False})
    result, envelope = fedmem("eval", "unlearn", "--facts", str(facts), "--release", str(release))
    assert (result.exit_code, envelope["schema"]) == (6, "fedmem.eval.unlearn/1")
    assert envelope["data"][broken] is False


def test_bad_input(fedmem: Call, release: Path, facts: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(facts.read_text() + '{"q": "zebrafinch"}\n')
    cases = [
        (2, "UsageError", bad, release, ()),
        (2, "UsageError", tmp_path / "none", release, ()),
        (2, "UsageError", facts, release, ("--authors", "2")),
        (2, "UsageError", facts, release, ("--steps", "0")),
        (3, "NothingMatched", facts, tmp_path, ()),
    ]
    for code, error, file, folder, more in cases:
        result, envelope = fedmem("eval", "unlearn", "--facts", str(file), "--release", str(folder), *more)
        assert (result.exit_code, envelope["data"]["error"]) == (code, error)
        assert "zebrafinch" not in result.output


def test_without_a_release_it_is_the_last_run_s(fedmem: Call, facts: Path) -> None:
    result, envelope = fedmem("eval", "unlearn", "--facts", str(facts))
    assert (result.exit_code, envelope["data"]["error"]) == (3, "NothingMatched")


def test_a_release_of_another_embedder(fedmem: Call, facts: Path, tmp_path: Path) -> None:
    model, tokenizer = new_anchor("nano", vocab_size=300, seed=3), train_tokenizer(TEXTS, vocab_size=300)
    bank = BankState.new(spec_for(model, "ffn", 2, (4, 2)), seed=1).stream()
    tree = Tree(2, 2, (np.eye(4, 8, dtype=np.float32)[:2], np.eye(4, 8, dtype=np.float32)))
    other = Release.write(tmp_path / "releases", model, tokenizer, tree, "none", bank).root
    result, _ = fedmem("eval", "unlearn", "--facts", str(facts), "--release", str(other))
    assert result.exit_code == 9
