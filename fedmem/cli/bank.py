"""`fedmem bank`: build, train, show and verify the shared bank of a release."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.output import emit, json_option, pairs, say, table
from fedmem.cli.training import (
    FOLDER,
    RATE,
    SEED,
    load_corpus,
    print_training,
    training_options,
    watched_training,
    write_page,
)

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.routing.embedders import EmbedderName
    from fedmem.training.settings import Settings

KINDS = ("ffn", "lora_ffn", "lora_qk", "lora_vo", "kv")
PLACEMENTS = ("uniform", "late", "early", "middle", "ramp")
EMBEDDERS = ("static", "minilm")
MODES = ("cotrain", "joint", "frozen", "posthoc")


@click.group()
def bank() -> None:
    """Build, train, show and verify shared banks: blocks of long-tail knowledge, fetched by path."""


class Widths(click.ParamType[tuple[int, ...]]):
    """Comma-separated widths, one for each level."""

    name = "R1,R2,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the widths of a text such as "32,8,2".

        Args:
            value: The text.
            param: The parameter, for the message of an error.
            ctx: The context, for the message of an error.

        Raises:
            BadParameter: The text is not a list of whole numbers of at least 1.
        """
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and int(part) for part in parts):
            self.fail("Widths are whole numbers of at least 1, one for each level, such as 32,8,2.", param, ctx)
        return tuple(map(int, parts))


@bank.command(epilog="Example: fedmem bank build wikipedia --anchor my-anchor --out my-bank")
@click.argument("text")
@click.option("--anchor", type=FOLDER, required=True, help="Folder of an anchor, or of a Hugging Face model.")
@click.option("--out", type=FOLDER, required=True, help="Folder to write the release to, below releases/.")
@click.option("--kind", type=click.Choice(KINDS), default="ffn", show_default=True, help="Kind of memory.")
@click.option(
    "--branching", type=click.IntRange(min=2), default=8, show_default=True, help="Children of each node of the tree."
)
@click.option("--widths", type=Widths(), default="32,8,2", show_default=True, help="Mean width by level, top first.")
@click.option(
    "--placement", type=click.Choice(PLACEMENTS), default="uniform", show_default=True, help="Width by layer."
)
@click.option(
    "--embedder", type=click.Choice(EMBEDDERS), default="static", show_default=True, help="Embedder of tree and texts."
)
@click.option("--seed", type=SEED, default=7, show_default=True, help="Seed of tree and blocks.")
@json_option
def build(
    text: str,
    anchor: Path,
    out: Path,
    kind: str,
    branching: int,
    widths: tuple[int, ...],
    placement: str,
    embedder: "EmbedderName",
    seed: int,
) -> None:
    """Train a cluster tree on TEXT and write a release with untrained blocks, which do not change the model.

    TEXT is a JSONL file of public records, one a line, or the word wikipedia. --placement moves rows between layers and
    keeps their total number. --embedder static is the table in fedmem. minilm is all-MiniLM-L6-v2: it finds better
    neighbours, is a hundred times slower, and needs packages, on every device of the release too.
    """
    from dataclasses import asdict

    from fedmem.coordinator.build import build_bank
    from fedmem.coordinator.examine import describe_bank
    from fedmem.routing.embedders import named_embedder
    from fedmem.training.plans import BankPlan

    corpus, _ = load_corpus(text)
    plan = BankPlan(kind, branching, widths, placement, seed)
    release = build_bank(corpus, anchor, out, plan, named_embedder(embedder))
    data = asdict(describe_bank(release.root))
    emit("bank.build", data, lambda console: print_bank(console, data), "`fedmem bank show` prints it again.")


@bank.command(epilog="Example: fedmem bank train wikipedia --release my-bank/releases/DIGEST --out trained")
@click.argument("text")
@click.option("--release", type=FOLDER, required=True, help="Folder of the release to start from.")
@click.option("--out", type=FOLDER, required=True, help="Folder of this training. The same command continues it.")
@click.option("--mode", type=click.Choice(MODES), default="cotrain", show_default=True, help="The parts to train.")
@click.option("--memory-lr", type=RATE, default=3e-3, show_default=True, help="Highest learning rate of the blocks.")
@click.option("--subtree", "subtrees", type=click.IntRange(min=0), multiple=True, help="Run only this job. Repeatable.")
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

    cotrain trains anchor and bank, joint trains both from scratch, frozen and posthoc train the bank only. frozen and
    posthoc run one job for each subtree of level 1 and one for the generic block. With --subtree, only the given jobs
    run, and their parts are written to OUT/parts. To merge, copy the parts of all machines into one OUT, and run the
    same command without --subtree.
    """
    from fedmem.coordinator.bank_training import train_bank
    from fedmem.training.plans import TrainPlan
    from fedmem.training.release import Release

    corpus, attribution = load_corpus(text)
    plan = TrainPlan(mode, length, settings_of(memory_lr), seed)
    embedder = Release.load(release.resolve()).embedder
    with watched_training(tensorboard) as watch:
        data = train_bank(corpus, release, out, plan, embedder, watch, subtrees)
    if "release" not in data:
        say("The same command without --subtree runs the missing jobs and merges.")
        emit("bank.train", data, lambda console: pairs(console, [(n, " ".join(data[n])) for n in ("done", "missing")]))
        return
    write_page(f"bank, {mode}", out, data, attribution)
    folder = out / "releases" / data["release"]
    emit("bank.train", {"folder": folder} | data, lambda console: print_training(console, data))


@bank.command(epilog="Example: fedmem bank show --json")
@click.argument("release", type=FOLDER, required=False)
@json_option
def show(release: Path | None) -> None:
    """Show the bank of RELEASE, a folder. The default is the last release of the last simulation run."""
    from dataclasses import asdict

    from fedmem.coordinator.examine import describe_bank
    from fedmem.sim.runs import find_last_release

    data = asdict(describe_bank(release or find_last_release()))
    emit("bank.show", data, lambda console: print_bank(console, data))


@bank.command(epilog="Example: fedmem bank verify my-bank/releases/DIGEST")
@click.argument("release", type=FOLDER, required=False)
@json_option
def verify(release: Path | None) -> None:
    """Check every file of RELEASE, and check that its anchor, tree, tokenizer and bank fit together.

    The default is the last release of the last simulation run. The exit code is 6 if a check fails.
    """
    from fedmem.coordinator.examine import verify_release as verify_release
    from fedmem.sim.runs import find_last_release

    checked = verify_release(release or find_last_release())
    files = len(checked.manifest["files"])
    data = {"verified": True, "release": checked.digest, "folder": checked.root, "files": files}
    emit("bank.verify", data, lambda console: pairs(console, data.items()))


def print_bank(out: "Console", data: Mapping[str, Any]) -> None:
    """Print a bank: its anchor, its levels, the share of a fetch in the anchor's parameters, and its digest.

    Args:
        out: The console.
        data: Data of the JSON envelope.
    """
    names = ("kind", "anchor", "anchor_parameters", "embedder", "branching", "values", "bytes", "fetched_values")
    pairs(out, [(name.replace("_", " "), data[name]) for name in names])
    pairs(out, [("fetched, of the anchor", f"{data['share']:.1%}"), ("release", data["release"])])
    pairs(out, [("folder", data["folder"])])
    columns = ("level", "blocks", "widths by layer", "values a block", "values", "bytes")
    rows = [
        [level["level"], level["blocks"], widths_text(level["widths"]),
         level["block_values"], level["values"], level["bytes"]]
        for level in data["levels"]
    ]  # fmt: skip
    table(out, columns, rows)


def widths_text(widths: tuple[int, ...]) -> str:
    """Return the widths by layer as text: a single number if all are equal.

    Args:
        widths: Width of a block in each layer, at least one.
    """
    return str(widths[0]) if len(set(widths)) == 1 else " ".join(map(str, widths))
