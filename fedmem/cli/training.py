"""Code that `fedmem anchor` and `fedmem bank` share: options of a training, its progress, and its report.

Invariants
- If TensorBoard is requested and not installed, the command fails before the training starts.
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
    """Return a decorator that adds the options of every training to a command.

    The command gets `length`, `seed`, `tensorboard`, and the function `settings_of`, which returns the Settings.

    Args:
        steps: Default number of steps.
        lr: Default of the highest learning rate.
    """
    options = (
        click.option("--length", type=COUNT, default=256, show_default=True, help="Tokens of a packed row."),
        click.option("--steps", type=COUNT, default=steps, show_default=True, help="Steps of training."),
        click.option("--batch", type=COUNT, default=16, show_default=True, help="Packed rows in a step."),
        click.option("--lr", type=RATE, default=lr, show_default=True, help="Highest learning rate of the anchor."),
        click.option("--bf16", is_flag=True, help="Run the forward pass in bf16, if the processor supports it."),
        click.option("--seed", type=SEED, default=7, show_default=True, help="Seed of all random choices."),
        click.option("--tensorboard", type=FOLDER, help="Also write losses to this folder, for TensorBoard."),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(*args: Any, steps: int, batch: int, lr: float, bf16: bool, **rest: Any) -> Any:
            return command(*args, settings_of=functools.partial(settings, steps, batch, lr, bf16), **rest)

        decorated: Callable[..., Any] = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return add


def settings(steps: int, batch: int, lr: float, bf16: bool, memory_lr: float = 0.0) -> "Settings":
    """Return the training settings for the values of the options.

    Args:
        steps: Number of steps.
        batch: Packed rows in a step.
        lr: Highest learning rate of the anchor.
        bf16: Run the forward pass in bf16.
        memory_lr: Highest learning rate of the blocks.
    """
    from fedmem.training.settings import Settings

    return Settings(steps, batch, lr, memory_lr=memory_lr, bf16=bf16)


def load_corpus(source: str) -> "tuple[Corpus, str]":
    """Load the public corpus of a command's argument TEXT.

    Args:
        source: Path of a JSONL file, or the word `wikipedia`.

    Returns:
        The corpus, and its attribution.
    """
    from fedmem.sim.sources.texts import public_texts
    from fedmem.training.corpus import Corpus

    texts, attribution = public_texts(source)
    return Corpus.of(texts), attribution


@contextlib.contextmanager
def watched_training(tensorboard: Path | None) -> "Iterator[Watch]":
    """Prepare the process for a training, and yield the Watch that shows its progress.

    Args:
        tensorboard: Folder to write scalars to, or None.
    """
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
    """Write `report.html` with the loss curve of a training. Say so if a package for plots is missing.

    Args:
        title: Title of the page.
        folder: Folder of the training.
        data: Data of the JSON envelope.
        attribution: Attribution of the corpus.
    """
    try:
        from fedmem.sim.report import write_report
    except ModuleNotFoundError as error:
        say(f"No report: {error.name} is not installed. `pip install 'fedmem[sim]'`, then repeat.")
        return
    run = {"name": title, "seed": data["inputs"]["seed"], "state": "completed", "config": data["inputs"]}
    write_report(run | {"loss": {"by_phase": data["curve"]}, "attribution": [attribution]}, folder / "report.html")
    say(f"Report: {folder / 'report.html'}")


def print_training(out: "Console", data: Mapping[str, Any]) -> None:
    """Print the result of a training: the held-out loss at its start and end, and its speed.

    Args:
        out: The console.
        data: Data of the JSON envelope.
    """
    pairs(out, [(name.replace("_", " "), data[name]) for name in ("release", "parameters") if name in data])
    for phase in dict.fromkeys(point["phase"] for point in data["curve"]):
        losses = [p["loss"] for p in data["curve"] if (p["phase"], p["split"]) == (phase, "heldout")]
        if losses:
            pairs(out, [(f"{phase}, held-out loss", f"{losses[0]:.3f} → {losses[-1]:.3f}")])
    pairs(out, [(name.replace("_", " "), data[name]) for name in ("tokens", "seconds", "tokens_per_second")])
