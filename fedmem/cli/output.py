"""What a command writes: data on stdout, talk on stderr, one envelope under `--json`.

Invariants
- With `--json`, stdout holds exactly one JSON document, whatever happens: the command's envelope, or
  `fedmem.error/1` where the command failed before it had data. A command that has data and then fails
  (a partial erasure) keeps its envelope; the exit code and the sentence on stderr tell the rest.
- NaN and infinity never reach JSON; an unknown or unbounded figure is null.
- Control characters in stored names are shown as `?`, never sent to the terminal.

>>> clean("a\\x1b[31m")
'a?[31m'
>>> plain({"epsilon": float("inf"), "ids": (1, 2)})
{'epsilon': None, 'ids': [1, 2]}
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.errors import FedmemError

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 200  # columns of a table that no terminal bounds


@dataclass
class Session:
    """State of one command: how to speak, and whether the data is out already."""

    json: bool = False
    debug: bool = False
    emitted: bool = False


def session() -> Session:
    """The session of the running command."""
    return click.get_current_context().find_root().ensure_object(Session)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` to a command."""

    def switch(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().ensure_object(Session).json = True

    return click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=switch, help="One JSON envelope on stdout."
    )(command)


def emit(schema: str, data: Mapping[str, Any], human: Callable[["Console"], None]) -> None:
    """Write the command's data once: the envelope `fedmem.<schema>/1`, or what `human` prints."""
    state = session()
    state.emitted = True
    if state.json:
        write_envelope(schema, data)
    else:
        human(console())


def write_envelope(schema: str, data: Mapping[str, Any]) -> None:
    """Write one envelope to stdout."""
    envelope = {"schema": f"fedmem.{schema}/1", "data": plain(data)}
    click.echo(json.dumps(envelope, ensure_ascii=False, allow_nan=False, indent=2))


def write_error(error: FedmemError, state: Session) -> None:
    """Say the sentence on stderr and, under `--json` without data so far, write `fedmem.error/1`."""
    say(str(error))
    if state.json and not state.emitted:
        write_envelope("error", {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code})


def say(text: str) -> None:
    """Talk to the person, on stderr."""
    click.echo(clean(text), err=True)


def console() -> "Console":
    """A console on stdout; wide where no terminal bounds it, so that nothing is cut."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDE
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def table(out: "Console", columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers are set right."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    body = [list(row) for row in rows]
    for index, name in enumerate(columns):
        right = all(isinstance(row[index], int | float) for row in body)
        grid.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in body:
        grid.add_row(*[Text(shown(cell)) for cell in row])
    out.print(grid)


def pairs(out: "Console", rows: Iterable[tuple[str, Any]]) -> None:
    """Print names and values in two columns."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(shown(value)))
    out.print(grid)


def shown(value: Any) -> str:
    """One value as a person reads it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"
    return clean(str(value))


def clean(text: str) -> str:
    """`text` without control characters."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def plain(value: Any) -> Any:
    """`value` as JSON holds it: paths as strings, tuples as lists, unbounded floats as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
