"""`fedmem anchor`: train the small model that every bank goes with."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmem.cli.output import emit, json_option
from fedmem.cli.training import COUNT, FOLDER, corpus_of, describe, training_options, watching, write_page

if TYPE_CHECKING:
    from fedmem.training.settings import Settings

PRESETS = ("pico", "nano", "tiny", "small", "160m", "410m", "1.4b")


@click.group()
def anchor() -> None:
    """Anchors: small models that hold common knowledge."""


@anchor.command(epilog="Example: fedmem anchor train wikipedia --out my-anchor")
@click.argument("text")
@click.option("--out", type=FOLDER, required=True, help="Folder of this training; the same call there goes on.")
@click.option("--preset", type=click.Choice(PRESETS), default="tiny", show_default=True, help="Size of the anchor.")
@click.option("--vocabulary", type=COUNT, default=4096, show_default=True, help="Entries of the tokenizer, at most.")
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

    TEXT must be public: what it teaches is in every release. One document in twenty is held out; its loss is the
    curve in report.html. An interrupted training goes on from its last checkpoint, to the same bytes.
    """
    from fedmem.coordinator.build import train_anchor
    from fedmem.training.plans import AnchorPlan

    corpus, attribution = corpus_of(text)
    with watching(tensorboard) as watch:
        data = train_anchor(corpus, out, AnchorPlan(preset, vocabulary, length, settings_of(), seed), watch)
    write_page("anchor", out, data, attribution)
    emit("anchor.train", {"folder": out} | data, lambda console: describe(console, data))
