"""The output of a command: data on stdout, messages on stderr, one envelope with `--json`.

Invariants
- With `--json`, stdout always gets exactly one JSON document: the command's envelope, or `fedmem.error/1` if the
  command failed before it had data. A command that has data and then fails (a partial erasure) writes its envelope. Its
  exit code and the sentence on stderr say that it failed.
- NaN and infinity are never written to JSON. An unknown or unbounded figure is null.
- Control characters in stored names are shown as `?` and never reach the terminal.
- A failed write to stdout raises no error: `emit` returns False, and the session keeps the error until the end.

>>> clean("a\\x1b[31m")
'a?[31m'
>>> plain({"epsilon": float("inf"), "ids": (1, 2)})
{'epsilon': None, 'ids': [1, 2]}
"""

import contextlib
import io
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedmem.cli.streams import is_terminal, write
from fedmem.errors import FedmemError

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 200  # columns of a table if no terminal limits them


@dataclass
class CommandSession:
    """The state of one command.

    Attributes:
        json: True if `--json` is set.
        debug: True if `--debug` is set.
        emitted: True if the command wrote its data, or tried to.
        changes: True if the command may have changed something durable. Failed output then keeps its exit code.
        unwritten: The error of stdout, if it did not receive the data.
        again: Sentence that says how to get the data again.
    """

    json: bool = False
    debug: bool = False
    emitted: bool = False
    changes: bool = False
    unwritten: OSError | None = None
    again: str = ""


def session() -> CommandSession:
    """Return the session of the running command."""
    return click.get_current_context().find_root().ensure_object(CommandSession)


def changing() -> None:
    """Record in the session that the running command may change something durable."""
    context = click.get_current_context(silent=True)
    if context is not None:
        context.find_root().ensure_object(CommandSession).changes = True


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` to a command.

    Args:
        command: The function of the command.
    """

    def switch(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().ensure_object(CommandSession).json = True

    return click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=switch, help="One JSON envelope on stdout."
    )(command)


def emit(schema: str, data: Mapping[str, Any], human: Callable[["Console"], None], again: str = "") -> bool:
    """Write the command's data once, as the envelope `fedmem.<schema>/1` or as text for a person.

    Args:
        schema: Name of the command in the envelope, such as `block.list`.
        data: The data of the envelope.
        human: Prints the data to a console. It is used without `--json`.
        again: Sentence that says how to get the data again, if repeating the command would not.

    Returns:
        True if stdout received all of it. Otherwise the session keeps the error, and `main` sets the exit code.
    """
    state = session()
    state.emitted, state.again = True, again
    text = envelope(schema, data) if state.json else console_text(human)
    try:
        write(sys.stdout, text)
    except OSError as error:
        state.unwritten = error
    return state.unwritten is None


def envelope(schema: str, data: Mapping[str, Any]) -> str:
    """Return one envelope as JSON text that stdout's encoding can express.

    Args:
        schema: Name of the command, such as `sim.run`.
        data: The data; `plain` makes it JSON.
    """
    whole = {"schema": f"fedmem.{schema}/1", "data": plain(data)}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=2)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(whole, allow_nan=False, indent=2)
    return text + "\n"


def console_text(human: Callable[["Console"], None]) -> str:
    """Return the text that `human` prints. Its width is that of the terminal, or WIDE without one.

    Args:
        human: Prints to a console.
    """
    from rich.console import Console

    # `shutil` treats a width of 0 as unknown; rich would print nothing.
    is_bounded, text = is_terminal(sys.stdout), io.StringIO()
    width = shutil.get_terminal_size().columns if is_bounded else WIDE
    human(Console(file=text, width=width, force_terminal=is_bounded, highlight=False, markup=False))
    return text.getvalue()


def write_error(error: FedmemError, state: CommandSession) -> None:
    """Write the error's sentence to stderr. With `--json` and no data so far, also write `fedmem.error/1` to stdout.

    Args:
        error: The error.
        state: The session of the command.
    """
    say(str(error))
    if state.json and not state.emitted:
        facts = {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
        with contextlib.suppress(OSError):
            write(sys.stdout, envelope("error", facts))


def say(text: str) -> None:
    """Write a message to stderr. Ignore a stderr that cannot be written to.

    Args:
        text: The message, without a line end.
    """
    with contextlib.suppress(OSError):
        write(sys.stderr, clean(text) + "\n")


def table(out: "Console", columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table. Columns of numbers are aligned right.

    Args:
        out: The console.
        columns: Titles of the columns.
        rows: One value for each column.
    """
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
    """Print names and values in two columns.

    Args:
        out: The console.
        rows: Names and values.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(shown(value)))
    out.print(grid)


def shown(value: Any) -> str:
    """Return a value as text for a person.

    Args:
        value: A value of any type.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.3f}"
    return clean(str(value))


def clean(text: str) -> str:
    """Return `text` with `?` for every control character, except line ends.

    Args:
        text: A text from any source.
    """
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def plain(value: Any) -> Any:
    """Return `value` as JSON data: paths as strings, tuples as lists, infinity and NaN as None.

    Args:
        value: Nested mappings, lists and tuples of scalars and paths.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
