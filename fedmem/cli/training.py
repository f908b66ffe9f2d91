"""What the nouns `anchor` and `bank` share: options of a training, how it is watched, and its report.

Invariants
- TensorBoard that is asked for and not installed is known before the training starts.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.output import changing, pairs, say

if TYPE_CHECKING:
    from rich.console import Console

    from fedmem.training.corpus import Corpus
    from fedmem.training.settings import Settings
    from fedmem.training.state import Watch

FOLDER = click.Path(file_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)
RATE = click.FloatRange(min=0, min_open=True, max=1)
SEED = click.IntRange(min=0)


def training_options(steps: int, lr: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options that every training has; the command gets `length`, `seed`, `tensorboard` and `settings_of`."""
    options = (
        click.option("--length", type=COUNT, default=256, show_default=True, help="Tokens of a packed row."),
        click.option("--steps", type=COUNT, default=steps, show_default=True, help="Steps of training."),
        click.option("--batch", type=COUNT, default=16, show_default=True, help="Packed rows a step."),
        click.option("--lr", type=RATE, default=lr, show_default=True, help="Learning rate of the anchor, at its top."),
        click.option("--bf16", is_flag=True, help="Run the forward pass in bf16, where the processor has it."),
        click.option("--seed", type=SEED, default=7, show_default=True, help="Seed of everything that is drawn."),
        click.option("--tensorboard", type=FOLDER, help="Write losses there too, for TensorBoard."),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def joined(*args: Any, steps: int, batch: int, lr: float, bf16: bool, **rest: Any) -> Any:
            return command(*args, settings_of=functools.partial(settings, steps, batch, lr, bf16), **rest)

        found: Callable[..., Any] = joined
        for option in reversed(options):
            found = option(found)
        return found

    return add


def settings(steps: int, batch: int, lr: float, bf16: bool, memory_lr: float = 0.0) -> "Settings":
    """The settings that the options mean."""
    from fedmem.training.settings import Settings

    return Settings(steps, batch, lr, memory_lr=memory_lr, bf16=bf16)


def corpus_of(named: str) -> "tuple[Corpus, str]":
    """The corpus that TEXT names, and whose text it is."""
    from fedmem.sim.sources.texts import public_texts
    from fedmem.training.corpus import Corpus

    texts, attribution = public_texts(named)
    return Corpus.of(texts), attribution


@contextlib.contextmanager
def watching(tensorboard: Path | None) -> "Iterator[Watch]":
    """A watch that shows progress and, if asked, writes scalars; raises malloc's thresholds where that helps."""
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter
    from fedmem.training.state import Watch

    keep_buffers()
    changing()
    with contextlib.ExitStack() as stack:
        scalar = {}
        if tensorboard:
            from fedmem.training.tensorboard import Scalars

            scalars = stack.enter_context(contextlib.closing(Scalars(tensorboard)))
            scalar = {"scalar": scalars.add}
        yield Watch(stack.enter_context(reporter()), **scalar)


def write_page(title: str, folder: Path, data: Mapping[str, Any], attribution: str) -> None:
    """Write `report.html` with the curve of a training; without the packages that draw, say so."""
    try:
        from fedmem.sim.report import write_report
    except ModuleNotFoundError as error:
        say(f"No report: {error.name} is not installed. `pip install 'fedmem[sim]'`, then repeat.")
        return
    run = {"name": title, "seed": data["inputs"]["seed"], "state": "completed", "config": data["inputs"]}
    write_report(run | {"loss": {"by_phase": data["curve"]}, "attribution": [attribution]}, folder / "report.html")
    say(f"Report: {folder / 'report.html'}")


def describe(out: "Console", data: Mapping[str, Any]) -> None:
    """Print what a training gave: the held-out loss at its start and end, and its speed."""
    pairs(out, [(name.replace("_", " "), data[name]) for name in ("release", "parameters") if name in data])
    for phase in dict.fromkeys(point["phase"] for point in data["curve"]):
        held = [p["loss"] for p in data["curve"] if (p["phase"], p["split"]) == (phase, "heldout")]
        if held:
            pairs(out, [(f"{phase}, held-out loss", f"{held[0]:.3f} → {held[-1]:.3f}")])
    pairs(out, [(name.replace("_", " "), data[name]) for name in ("tokens", "seconds", "tokens_per_second")])
