"""Progress on stderr: a bar for each phase on a terminal, one line for each phase without one.

Invariants
- Nothing is written to stdout.
- Without a terminal, a phase writes one line when it begins, and nothing more.

    with reporter() as progress:
        progress("pretrain", 1, 10)
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from fedmem.cli.output import say
from fedmem.cli.streams import is_terminal

if TYPE_CHECKING:
    from rich.progress import TaskID


class Report(Protocol):
    """A function that a phase calls with its progress: `done` of `total` units, and a note with nothing private."""

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def reporter() -> Iterator[Report]:
    """Yield a Report that shows progress on stderr: bars on a terminal, or else lines."""
    if not is_terminal(sys.stderr):
        yield Lines()
        return
    with Bars() as bars:
        yield bars


class Lines:
    """Progress as one line for each phase."""

    def __init__(self) -> None:
        self.phases: set[str] = set()

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Write a line at the first call of a phase."""
        if phase not in self.phases:
            self.phases.add(phase)
            say(f"{phase} …" if not note else f"{phase} … {note}")


class Bars:
    """Progress as a rich bar for each phase."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = [TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        note = TextColumn("{task.fields[note]}", markup=False)
        self.progress = Progress(*columns, note, console=Console(stderr=True))
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Update the bar of the phase."""
        if phase not in self.tasks:
            self.tasks[phase] = self.progress.add_task(phase, total=total or None, note="")
        self.progress.update(self.tasks[phase], completed=done, total=total or None, note=note)
