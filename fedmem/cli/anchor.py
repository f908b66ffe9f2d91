"""`fedmem anchor`: train the small model that a bank is built for."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmem.cli.output import emit, json_option
from fedmem.cli.training import (
    COUNT,
    FOLDER,
    load_corpus,
    print_training,
    training_options,
    watched_training,
    write_page,
)

if TYPE_CHECKING:
    from fedmem.training.settings import Settings

PRESETS = ("pico", "nano", "tiny", "small", "160m", "410m", "1.4b")


@click.group()
def anchor() -> None:
    """Train anchors: small language models that hold common knowledge."""


@anchor.command(epilog="Example: fedmem anchor train wikipedia --out my-anchor")
@click.argument("text")
@click.option("--out", type=FOLDER, required=True, help="Folder of this training. The same command continues it.")
@click.option("--preset", type=click.Choice(PRESETS), default="tiny", show_default=True, help="Size of the anchor.")
@click.option("--vocabulary", type=COUNT, default=4096, show_default=True, help="Most entries of the tokenizer.")
@training_options(steps=2000, lr=3e-3)
@json_option
def train(
    text: str,
    out: Path,
    preset: str,
    vocabulary: int,
    length: int,
    seed: int,
    tensorboard: Path | None,
    settings_of: "Callable[[], Settings]",
) -> None:
    """Train a tokenizer and an anchor on TEXT: a JSONL file with one record a line, or the word wikipedia.

    TEXT must be public, because every release contains what the anchor learned from it. One document in twenty is held
    out, and report.html shows the loss on these documents. The same command continues an interrupted training from its
    last checkpoint. The result has the same bytes as an uninterrupted training.
    """
    from fedmem.coordinator.build import train_anchor
    from fedmem.training.plans import AnchorPlan

    corpus, attribution = load_corpus(text)
    with watched_training(tensorboard) as watch:
        data = train_anchor(corpus, out, AnchorPlan(preset, vocabulary, length, settings_of(), seed), watch)
    write_page("anchor", out, data, attribution)
    emit("anchor.train", {"folder": out} | data, lambda console: print_training(console, data))
