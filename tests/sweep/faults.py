"""The file layer fails at each of its operations, reads included: an error of the disk, a full disk, a read-only one.

Invariants
- An error of the disk comes once, or from then on; a full disk and a read-only one stay so.
- What comes of it is StorageError (exit 11) and the old state, or past the point of no return PartialErasure (exit 5)
  or a state that the next opening completes; never another error, never a third state.

    for name, run in points(place, scratch):
        problem = run(scratch)
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fedmem.errors import FedmemError, PartialErasure, StorageError
from fedmem.storage.files import Files
from tests.sweep.operations import OPERATIONS, Operation, Place, Point, Run, opened

NEED_ROOM = frozenset({"write", "fsync", "mkdir"})


class Failing(Files):
    """A file layer that fails from operation `at` on, as `kind` says; None never fails."""

    def __init__(self) -> None:
        super().__init__(self._announce)
        self.seen: list[str] = []
        self.kind, self.at = "", None

    def arm(self, kind: str, at: int | None) -> None:
        """Count from 0 again and fail at `at`."""
        self.kind, self.at, self.seen = kind, at, []

    def _announce(self, operation: str, path: Path) -> None:
        self.seen.append(operation)
        now = len(self.seen) - 1
        if self.at is not None and now >= self.at and (number := KINDS[self.kind](operation, now == self.at)):
            raise OSError(number, os.strerror(number))


KINDS: dict[str, Callable[[str, bool], int]] = {
    "eio": lambda operation, first: errno.EIO if first else 0,
    "eio-on": lambda operation, first: errno.EIO,
    "full": lambda operation, first: errno.ENOSPC if operation in NEED_ROOM else 0,
    "read-only": lambda operation, first: errno.EROFS if operation != "read" else 0,
}


def points(place: Place, scratch: Path) -> Iterator[Point]:
    """Every operation of the file layer in every operation of a vault: (name, what says what is wrong)."""
    for operation in OPERATIONS.values():
        for number, call in enumerate(calls(place, operation, scratch)):
            for kind in KINDS:
                yield f"fs-{kind}/{operation.name}/{number}-{call}", _point(place, operation, number, kind)


def calls(place: Place, operation: Operation, scratch: Path) -> list[str]:
    """What the file layer is asked for in one undisturbed run."""
    files = Failing()
    with opened(place.copy(scratch), files) as vault:
        act = operation.prepare(vault)
        files.arm("eio", None)
        act()
        return files.seen


def _point(place: Place, operation: Operation, number: int, kind: str) -> Run:
    def run(scratch: Path) -> str:
        copy, files, error = place.copy(scratch), Failing(), None
        with opened(copy, files) as vault:
            act = operation.prepare(vault)
            files.arm(kind, number)
            try:
                act()
            except FedmemError as caught:
                error = caught
            files.arm(kind, None)
        if isinstance(error, PartialErasure) and operation.erases:
            error = None  # it goes on where it is resumed
        elif error is not None and not isinstance(error, StorageError):
            return f"it ended with {type(error).__name__}: {error}"
        return operation.judge(copy, acknowledged=error is None)

    return run
