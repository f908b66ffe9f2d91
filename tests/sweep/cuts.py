"""The power goes between any two operations on our own files: what was not synced is dropped, kept, torn or reordered.

Invariants
- An operation is performed once, on a disk that is watched; each moment of it gives the states that a cut may leave.
- Two cuts that leave the same files are one point.
- Whatever state it is, the vault opens and is the old one or the new one; after the acknowledgement, the new one.

    for name, run in points(place, scratch):
        problem = run(scratch)
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from fedmem.storage.files import Files
from tests.sweep.disk import Cut, recorded, states, tree, write_state
from tests.sweep.operations import OPERATIONS, Operation, Place, Point, Run, opened

EACH = 24  # states of one cut at most


def points(place: Place, scratch: Path, kind: type[Files] = Files) -> Iterator[Point]:
    """Every state of every cut of every operation: (name, what looks at it and says what is wrong)."""
    for operation in OPERATIONS.values():
        watched = place.copy(scratch)
        for number, cut in enumerate(cuts(watched, operation, kind)):
            for state, kept in enumerate(different(cut)):
                name = f"cut/{operation.name}/{number}-{cut.before.replace(' ', '-')}/{state}"
                yield name, point(watched, operation, cut, kept)


def cuts(place: Place, operation: Operation, kind: type[Files] = Files) -> list[Cut]:
    """The moments of one operation on a watched disk."""
    with recorded(place.folder, kind) as disk, opened(place, disk.files) as vault:
        act = operation.prepare(vault)
        disk.settle()
        act()
        disk.acknowledged = True
        disk.cut("return")
    return _apart(disk.cuts)


def different(cut: Cut) -> list[tuple[int, ...]]:
    """States of a cut that differ in what lies on the disk."""
    found: dict[frozenset[tuple[Path, bytes | None]], tuple[int, ...]] = {}
    for kept in states(cut, EACH):
        found.setdefault(frozenset(tree(cut, kept).items()), kept)
    return list(found.values())


def point(watched: Place, operation: Operation, cut: Cut, kept: tuple[int, ...]) -> Run:
    """What tries one state of one cut."""

    def run(scratch: Path) -> str:
        shutil.rmtree(scratch, ignore_errors=True)
        write_state(cut, kept, watched.folder, scratch)
        left = Place(scratch, watched.before)
        return operation.judge(left, cut.acknowledged)

    return run


def _apart(found: list[Cut]) -> list[Cut]:
    """Without moments that equal the one before."""
    kept: list[Cut] = []
    for cut in found:
        facts = (cut.durable, cut.pending, cut.sqlite, cut.acknowledged)
        last = kept[-1] if kept else None
        if last is None or facts != (last.durable, last.pending, last.sqlite, last.acknowledged):
            kept.append(cut)
    return kept
