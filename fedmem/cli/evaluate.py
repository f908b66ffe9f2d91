"""`fedmem eval`: what a release and its private blocks hold, and what they no longer hold."""

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
    """Measurements of releases and blocks."""


@evaluate.command(epilog="Example: fedmem eval unlearn --facts tofu_qa.jsonl.gz --json")
@click.option("--facts", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Invented pairs, JSONL.")
@click.option("--release", type=click.Path(file_okay=False, path_type=Path), help="Folder of a release.")
@click.option("--authors", type=COUNT, default=2, show_default=True, help="Authors to forget, and as many to retain.")
@click.option("--steps", type=COUNT, default=150, show_default=True, help="Steps of training of each block.")
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True, help="Seed of what is drawn.")
@json_option
def unlearn(facts: Path, release: Path | None, authors: int, steps: int, seed: int) -> None:
    """Measure whether an erased block is forgotten: before, after, and in a vault that never held it.

    FACTS is a JSONL file, plain or gzipped, of {"author", "q", "a"}, such as TOFU's. Its authors must be invented: the
    blocks are trained without noise, to be memorised, in a vault that is thrown away. Without --release it is the last
    release of the last run. Ends with 6 where the erasure left anything.
    """
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter
    from fedmem.errors import VerificationFailed
    from fedmem.eval.unlearning import UnlearnPlan, measure_unlearning
    from fedmem.routing.embedder import StaticEmbedder
    from fedmem.sim.heldout import heldout_of
    from fedmem.sim.runs import last_release
    from fedmem.sim.sources import tofu
    from fedmem.training.release import Release

    embedder, known = StaticEmbedder(), tofu.load(facts)
    opened = Release.load(release or last_release()).routed_by(embedder.digest)
    plan = UnlearnPlan(authors=authors, steps=steps, seed=seed)
    keep_buffers()
    with reporter() as progress:
        data = measure_unlearning(opened, embedder, known, plan, heldout_of(opened.root), progress)
    data["attribution"] = tofu.ATTRIBUTION
    emit("eval.unlearn", data, lambda out: described(out, data))
    if not (data["equal_logits"] and data["verified"]):
        raise VerificationFailed("The erasure left something: the model is not one that never saw it. Report a bug.")


def described(out: "Console", data: Mapping[str, Any]) -> None:
    """Print a row for each metric, and what the erasure is worth."""
    measured = {metric: found for metric, found in data["metrics"].items() if found["never"] is not None}
    rows = [[metric, *(found[name] for name in COLUMNS)] for metric, found in measured.items()]
    table(out, ("metric", *COLUMNS.values()), rows)
    pairs(out, [("logits equal those of a vault that never held it", data["equal_logits"])])
    pairs(out, [("rescan of the vault found nothing", data["verified"]), ("release", data["release"])])
    pairs(out, [("no differential privacy", data["unsafe_reason"])])
    say(data["attribution"])
