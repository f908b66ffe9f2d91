"""A click group that knows its nouns by name and imports one only when it is invoked.

Invariants
- Listing and help of the root import no noun: the one-line help stands in the table.
- A noun's module imports click and this package only; rooms are imported inside its commands.

>>> group = LazyGroup("demo", lazy={"path": ("fedmem.cli.path:path", "Where things are.")})
>>> group.list_commands(click.Context(group))
['path']
"""

import importlib
from typing import Any

import click

Nouns = dict[str, tuple[str, str]]  # name -> ("module:attribute", one line of help)


class LazyGroup(click.Group):
    """Group whose commands are named as `module:attribute` and loaded on demand."""

    def __init__(self, *args: Any, lazy: Nouns | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all nouns, in alphabetical order."""
        return sorted([*super().list_commands(ctx), *self.lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the noun and give its command; None where there is none."""
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of nouns from the table, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy[name][1]) for name in sorted(self.lazy)])
