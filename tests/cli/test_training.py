"""The options, progress and report that the trainings of anchor and bank share."""

import sys
import types
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from fedmem.cli import training
from fedmem.cli.output import console_text
from tests.cli.conftest import TINY, call, made


def test_tensorboard_is_asked_for_by_name_where_it_is_missing(
    work: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    words = ("anchor", "train", work["corpus"], "--out", tmp_path / "a", "--preset", "nano", "--vocabulary", 300, *TINY)
    result, envelope = call(*map(str, words), "--tensorboard", str(tmp_path / "logs"))
    assert result.exit_code == 2
    assert "pip install tensorboard" in envelope["data"]["message"]
    assert not (tmp_path / "a").exists()


def test_tensorboard_gets_every_loss(work: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            told.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, step))

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    module = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(module, "SummaryWriter", Writer, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    words = ("anchor", "train", work["corpus"], "--out", tmp_path / "a", "--preset", "nano", "--vocabulary", 300, *TINY)
    made(*words, "--tensorboard", tmp_path / "logs")
    assert (told[0], told[-1]) == (str(tmp_path / "logs"), "closed")
    assert told[1:-1].count(("anchor/train", 4)) == 1
    assert next(entry for entry in told[1:-1] if entry[0] == "anchor/heldout") == ("anchor/heldout", 0)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ('{"text": "a", "topic": "health"}', 4, "public text only"),
        ('{"text": 1}', 2, "line 1"),
        ('{"text": "a"}', 2, "two different"),
    ],
)
def test_a_corpus_that_will_not_do(line: str, code: int, words: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(line + "\n")
    result, envelope = call("anchor", "train", str(corpus), "--out", str(tmp_path / "a"))
    assert result.exit_code == code
    assert words in envelope["data"]["message"]
    assert not (tmp_path / "a").exists()


def test_the_options_become_the_settings_of_the_command() -> None:
    received = dict[str, Any]()

    @click.command()
    @training.training_options(steps=20, lr=0.01)
    def command(settings_of: Any, **rest: Any) -> None:
        received.update(rest, settings=settings_of())

    assert CliRunner().invoke(command, ["--batch", "3", "--bf16", "--seed", "5"]).exit_code == 0
    settings = received["settings"]
    assert (settings.steps, settings.batch, settings.lr, settings.bf16) == (20, 3, 0.01, True)
    assert (received["length"], received["seed"], received["tensorboard"]) == (256, 5, None)
    for words in (["--steps", "0"], ["--lr", "2"], ["--seed", "-1"]):
        assert CliRunner().invoke(command, words).exit_code == 2


def test_without_the_packages_for_plots_there_is_a_sentence_and_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fedmem.sim.report", None)
    training.write_page("anchor", tmp_path, {"inputs": {"seed": 1}, "curve": []}, "")
    assert "pip install 'fedmem[sim]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_printed_losses_are_the_first_and_the_last_held_out_one() -> None:
    curve = [
        {"phase": "cotrain", "split": split, "loss": loss}
        for split, loss in (("heldout", 5.0), ("train", 9.0), ("heldout", 3.25))
    ]
    data = {"curve": curve, "tokens": 10, "seconds": 1.0, "tokens_per_second": 10.0, "release": "r1"}
    text = console_text(lambda out: training.print_training(out, data))
    assert "5.000 → 3.250" in text
    assert "9.000" not in text
    assert "r1" in text
