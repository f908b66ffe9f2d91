"""`fedmem sim`: run simulated federations, and list, show and compare the runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem import paths
from fedmem.cli.output import clean, emit, json_option, pairs, say, table
from fedmem.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


@click.group()
def sim() -> None:
    """Run, list, show and compare simulated federations on this machine."""


@sim.command(epilog="Example: fedmem sim run quickstart --seed 7")
@click.argument("scenario")
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), help="Your own text: JSONL, one record a line.")
@click.option("--seed", type=int, help="Seed of the run. The default is the scenario's seed.")
@click.option("--fresh", is_flag=True, help="Begin a new run instead of continuing an unfinished one.")
@click.option("--name", help="Name of the run. The default is the scenario's name and a number.")
@click.option(
    "--workers", type=click.IntRange(0, 256), default=0, metavar="N",
    help="Train the devices in N more processes. The results are the same.",
)  # fmt: skip
@json_option
def run(scenario: str, corpus: Path | None, seed: int | None, fresh: bool, name: str | None, workers: int) -> None:
    """Run SCENARIO, or continue an interrupted run of it."""
    from fedmem.cli.allocator import keep_buffers
    from fedmem.cli.progress import reporter
    from fedmem.sim.run import run_scenario as simulate

    keep_buffers()
    with reporter() as progress:
        data = simulate(scenario, corpus=corpus, seed=seed, fresh=fresh, name=name, progress=progress, workers=workers)
    say(f"Report: {paths.runs_dir() / data['name'] / 'report.html'}")
    emit("sim.run", data, lambda out: print_run(out, data), f"`fedmem sim show {data['name']}` prints it again.")


@sim.command("list", epilog="Example: fedmem sim list --json")
@json_option
def list_() -> None:
    """List the runs, oldest first."""
    from fedmem.sim.runs import list_runs

    runs = list_runs()
    if not runs:
        say("No runs yet. `fedmem sim run quickstart` makes one.")
    columns = ("name", "scenario", "seed", "state")
    rows = [[entry.get(column) for column in columns] for entry in runs]
    emit("sim.list", {"runs": runs}, lambda out: table(out, columns, rows))


@sim.command(epilog="Example: fedmem sim show quickstart-0001 --json")
@click.argument("name", required=False)
@json_option
def show(name: str | None) -> None:
    """Show the figures of run NAME. The default is the last run."""
    from fedmem.sim.runs import load_run

    data = load_run(name)
    emit("sim.show", data, lambda out: print_run(out, data))


@sim.command(epilog="Example: fedmem sim compare pretrain-0001 pretrain-0002 --out compared.html")
@click.argument("names", nargs=-1, required=True, metavar="RUN RUN...")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write a new .html page or .svg plot."
)
@json_option
def compare(names: tuple[str, ...], out: Path | None) -> None:
    """Compare finished runs: their scenarios, losses, ε, bytes and cost.

    Runs that differ only in their seed are one setting. A difference between settings has a 95 % interval if both were
    run with the same two or more seeds. From one seed no difference is claimed. An existing file is not overwritten.
    """
    from fedmem.sim.compare import compare as compare_runs

    render = None if out is None else renderer_for(out)
    data = compare_runs(names)
    if out is not None and render is not None:
        from fedmem.cli.receipt import write_new

        write_new(out, render(data))
        say(f"Written to {out}.")
    emit("sim.compare", data, lambda console: print_comparison(console, data))


def renderer_for(out: Path) -> Callable[[Mapping[str, Any]], str]:
    """Return the function that renders a comparison as a page or a plot, by the file's suffix.

    Args:
        out: Path of the file to write.

    Raises:
        UsageError: The file ends neither in .html nor in .svg.
    """
    from fedmem.sim.compare_page import render_page
    from fedmem.sim.compare_plots import draw_picture

    kinds = {".html": render_page, ".svg": lambda data: draw_picture(data["runs"])}
    if out.suffix not in kinds:
        raise UsageError(f"{out.name} is neither a page nor a plot: name a file that ends in .html or .svg.")
    return kinds[out.suffix]


def print_comparison(out: "Console", data: Mapping[str, Any]) -> None:
    """Print a comparison: its tables, caveats and the runs without differential privacy.

    Args:
        out: The console.
        data: Data of the JSON envelope.
    """
    from fedmem.sim.compare_tables import make_tables, unsafe_settings

    for part in make_tables(data):
        out.print(f"\n{part.title}", style="bold")
        table(out, [clean(column) for column in part.columns], part.rows)
        if part.note:
            out.print(clean(part.note), style="dim")
    for line in (*data["notes"], *unsafe_settings(data), *data["attribution"]):
        out.print(f"\n{clean(line)}")


def print_run(out: "Console", data: Mapping[str, Any]) -> None:
    """Print a run: its name and state, its losses, ε with the reason, bytes and the erasure.

    Args:
        out: The console.
        data: Data of the JSON envelope.
    """
    pairs(
        out, [(key, data[key]) for key in ("name", "scenario", "seed", "state", "phases_done", "digest") if key in data]
    )
    for title in ("loss", "epsilon", "bytes", "placement", "erasure", "residue", "seconds"):
        figures = flat(data.get(title) or {})
        if figures:
            out.print(f"\n{title}", style="bold")
            pairs(out, figures)
    if data.get("peak_rss_mb") is not None:
        out.print()
        pairs(out, [("peak memory, MB", data["peak_rss_mb"])])
    for line in data.get("attribution", []):
        out.print(f"\n{line}")


def flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the scalars of nested figures with dotted names, without lists.

    Args:
        figures: Nested mappings with scalars and lists.
        prefix: Put before each name.
    """
    scalars: list[tuple[str, Any]] = []
    for key, value in figures.items():
        if isinstance(value, Mapping):
            scalars += flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            scalars.append((f"{prefix}{key}", value))
    return scalars
