"""`fedmem eval`: measure releases and private blocks, before and after an erasure."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.output import emit, json_option, pairs, say, table

if TYPE_CHECKING:
    from rich.console import Console

COUNT = click.IntRange(min=1)
COLUMNS = {"before": "before", "after": "after erasure", "never": "never saw"}


@click.group("eval")
def evaluate() -> None:
    """Measure releases and private blocks."""


@evaluate.command(epilog="Example: fedmem eval unlearn --facts tofu_qa.jsonl.gz --json")
@click.option(
    "--facts",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="JSONL file of facts about invented authors.",
)
@click.option("--release", type=click.Path(file_okay=False, path_type=Path), help="Folder of a release.")
@click.option(
    "--authors", type=COUNT, default=2, show_default=True, help="Number of authors to forget, and of authors to retain."
)
@click.option("--steps", type=COUNT, default=150, show_default=True, help="Training steps of each block.")
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True, help="Seed of all random choices.")
@json_option
def unlearn(facts: Path, release: Path | None, authors: int, steps: int, seed: int) -> None:
    """Measure if an erased block is forgotten: before, after, and in a vault that never held it.

    --facts is a JSONL file, plain or gzipped, of {"author", "q", "a"}, such as TOFU's. The authors must be invented:
    the blocks memorise the facts, because they are trained without noise, in a temporary vault. The default of
    --release is the last release of the last simulation run. The exit code is 6 if the erasure left anything.
    """
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter
    from fedmem.errors import VerificationFailed
    from fedmem.eval.unlearning import UnlearnPlan, measure_unlearning
    from fedmem.sim.heldout import load_heldout
    from fedmem.sim.runs import find_last_release
    from fedmem.sim.sources import tofu
    from fedmem.training.release import Release

    pairs_by_author, loaded = tofu.load(facts), Release.load(release or find_last_release())
    embedder = loaded.embedder
    plan = UnlearnPlan(authors=authors, steps=steps, seed=seed)
    keep_buffers()
    with reporter() as progress:
        data = measure_unlearning(loaded, embedder, pairs_by_author, plan, load_heldout(loaded.root), progress)
    data["attribution"] = tofu.ATTRIBUTION
    emit("eval.unlearn", data, lambda out: print_unlearning(out, data))
    if not (data["equal_logits"] and data["verified"]):
        raise VerificationFailed(
            "The erasure left something: the model differs from one that never held the block. Report a bug."
        )


def print_unlearning(out: "Console", data: Mapping[str, Any]) -> None:
    """Print a row for each metric, and the checks of the erasure.

    Args:
        out: The console.
        data: Data of the JSON envelope.
    """
    metrics = {name: values for name, values in data["metrics"].items() if values["never"] is not None}
    rows = [[name, *(values[moment] for moment in COLUMNS)] for name, values in metrics.items()]
    table(out, ("metric", *COLUMNS.values()), rows)
    pairs(out, [("logits equal those of a vault that never held it", data["equal_logits"])])
    pairs(out, [("rescan of the vault found nothing", data["verified"]), ("release", data["release"])])
    pairs(out, [("no differential privacy", data["unsafe_reason"])])
    say(data["attribution"])
