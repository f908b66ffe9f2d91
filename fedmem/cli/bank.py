"""`fedmem bank`: make, train, show and check the shared bank of a release."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.output import emit, json_option, pairs, say, table
from fedmem.cli.training import FOLDER, RATE, SEED, corpus_of, describe, training_options, watching, write_page

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.training.settings import Settings

KINDS = ("ffn", "lora_ffn", "lora_qk", "lora_vo", "kv")
PLACEMENTS = ("uniform", "late", "early", "middle", "ramp")
MODES = ("cotrain", "joint", "frozen", "posthoc")


@click.group()
def bank() -> None:
    """Shared banks: long-tail knowledge in blocks, fetched by path."""


class Widths(click.ParamType[tuple[int, ...]]):
    """Comma-separated widths, one for each level."""

    name = "R1,R2,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, or a usage error."""
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and int(part) for part in parts):
            self.fail("Widths are numbers from 1 on, one for each level, such as 32,8,2.", param, ctx)
        return tuple(map(int, parts))


@bank.command(epilog="Example: fedmem bank build wikipedia --anchor my-anchor --out my-bank")
@click.argument("text")
@click.option("--anchor", type=FOLDER, required=True, help="Folder of an anchor, or of a Hugging Face model.")
@click.option("--out", type=FOLDER, required=True, help="Where the release is written, under releases/.")
@click.option("--kind", type=click.Choice(KINDS), default="ffn", show_default=True, help="Kind of memory.")
@click.option("--branching", type=click.IntRange(min=2), default=8, show_default=True, help="Children of a node.")
@click.option("--widths", type=Widths(), default="32,8,2", show_default=True, help="Mean width by level, top first.")
@click.option("--placement", type=click.Choice(PLACEMENTS), default="uniform", show_default=True, help="By layer.")
@click.option("--seed", type=SEED, default=7, show_default=True, help="Seed of tree and blocks.")
@json_option
def build(
    text: str, anchor: Path, out: Path, kind: str, branching: int, widths: tuple[int, ...], placement: str, seed: int
) -> None:
    """Train a cluster tree on TEXT and write a release with new blocks, which change nothing yet.

    TEXT is a JSONL file of public records, one a line, or the word wikipedia. A placement moves rows between layers;
    their number stays the same.
    """
    from dataclasses import asdict

    from fedmem.coordinator.build import build_bank
    from fedmem.coordinator.examine import describe as facts
    from fedmem.routing.embedder import StaticEmbedder
    from fedmem.training.plans import BankPlan

    corpus, _ = corpus_of(text)
    plan = BankPlan(kind, branching, widths, placement, seed)
    data = asdict(facts(build_bank(corpus, anchor, out, plan, StaticEmbedder()).root))
    emit("bank.build", data, lambda console: described(console, data), "`fedmem bank show` gives it again.")


@bank.command(epilog="Example: fedmem bank train wikipedia --release my-bank/releases/DIGEST --out trained")
@click.argument("text")
@click.option("--release", type=FOLDER, required=True, help="Folder of the release to start from.")
@click.option("--out", type=FOLDER, required=True, help="Folder of this training; the same call there goes on.")
@click.option("--mode", type=click.Choice(MODES), default="cotrain", show_default=True, help="What moves.")
@click.option("--memory-lr", type=RATE, default=3e-3, show_default=True, help="Learning rate of blocks, at its top.")
@click.option("--subtree", "subtrees", type=click.IntRange(min=0), multiple=True, help="Run only this job; repeatable.")
@training_options(steps=1000, lr=5e-4)
@json_option
def train(
    text: str,
    release: Path,
    out: Path,
    mode: str,
    memory_lr: float,
    subtrees: tuple[int, ...],
    length: int,
    seed: int,
    tensorboard: Path | None,
    settings_of: "Callable[..., Settings]",
) -> None:
    """Train the bank of a release on TEXT (public; a JSONL file, or the word wikipedia) into a new release.

    cotrain moves anchor and bank; joint does so from scratch; frozen and posthoc move the bank only, as one job for
    each subtree of level 1 and one for the generic block. With --subtree only those jobs run and leave their parts in
    OUT/parts: put the parts of several machines into one OUT, and the same call without --subtree does the rest.
    """
    from fedmem.coordinator.bank_training import train_bank
    from fedmem.routing.embedder import StaticEmbedder
    from fedmem.training.plans import TrainPlan

    corpus, attribution = corpus_of(text)
    plan = TrainPlan(mode, length, settings_of(memory_lr), seed)
    with watching(tensorboard) as watch:
        data = train_bank(corpus, release, out, plan, StaticEmbedder(), watch, subtrees)
    if "release" not in data:
        say("The same call without --subtree runs what is missing and merges.")
        emit("bank.train", data, lambda console: pairs(console, [(n, " ".join(data[n])) for n in ("done", "missing")]))
        return
    write_page(f"bank, {mode}", out, data, attribution)
    folder = out / "releases" / data["release"]
    emit("bank.train", {"folder": folder} | data, lambda console: describe(console, data))


@bank.command(epilog="Example: fedmem bank show --json")
@click.argument("release", type=FOLDER, required=False)
@json_option
def show(release: Path | None) -> None:
    """Show the bank of RELEASE, a release's folder; without it, of the last release of the last run."""
    from dataclasses import asdict

    from fedmem.coordinator.examine import describe as facts
    from fedmem.sim.runs import last_release

    data = asdict(facts(release or last_release()))
    emit("bank.show", data, lambda console: described(console, data))


@bank.command(epilog="Example: fedmem bank verify my-bank/releases/DIGEST")
@click.argument("release", type=FOLDER, required=False)
@json_option
def verify(release: Path | None) -> None:
    """Check every file of RELEASE, and that its anchor, tree, tokenizer and bank fit; what does not ends with 6.

    Without RELEASE it is the last release of the last run.
    """
    from fedmem.coordinator.examine import verify as check
    from fedmem.sim.runs import last_release

    found = check(release or last_release())
    data = {"verified": True, "release": found.digest, "folder": found.root, "files": len(found.manifest["files"])}
    emit("bank.verify", data, lambda console: pairs(console, data.items()))


def described(out: "Console", data: Mapping[str, Any]) -> None:
    """Print a bank: its anchor, its levels, what a fetch is worth, and its digest."""
    names = ("kind", "anchor", "anchor_parameters", "branching", "values", "bytes", "fetched_values")
    pairs(out, [(name.replace("_", " "), data[name]) for name in names])
    pairs(out, [("fetched, of the anchor", f"{data['share']:.1%}"), ("release", data["release"])])
    pairs(out, [("folder", data["folder"])])
    columns = ("level", "blocks", "widths by layer", "values a block", "values", "bytes")
    rows = [
        [one["level"], one["blocks"], short(one["widths"]), one["block_values"], one["values"], one["bytes"]]
        for one in data["levels"]
    ]
    table(out, columns, rows)


def short(widths: tuple[int, ...]) -> str:
    """Widths by layer; one number where they are alike."""
    return str(widths[0]) if len(set(widths)) == 1 else " ".join(map(str, widths))
