"""A click group that imports the module of a command only when the command is used.

Invariants
- The root's list of commands and its help import no command module. The one-line help texts are in a table.
- A command module imports click and this package only. Other rooms are imported inside its functions.

>>> group = LazyGroup("demo", lazy={"path": ("fedmem.cli.path:path", "Where things are.")})
>>> group.list_commands(click.Context(group))
['path']
"""

import importlib
from typing import Any

import click

Nouns = dict[str, tuple[str, str]]  # name -> ("module:attribute", one line of help)


class LazyGroup(click.Group):
    """A click group whose commands are named as `module:attribute` and imported on demand.

    Args:
        lazy: Name of a command -> its address `module:attribute`, and its line in the help.
    """

    def __init__(self, *args: Any, lazy: Nouns | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in alphabetical order.

        Args:
            ctx: The context of click.
        """
        return sorted([*super().list_commands(ctx), *self.lazy])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command `cmd_name`. Return None if there is none.

        Args:
            ctx: The context of click.
            cmd_name: Name of the command.
        """
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, without imports.

        Args:
            ctx: The context of click.
            formatter: Receives the list.
        """
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy[name][1]) for name in sorted(self.lazy)])
