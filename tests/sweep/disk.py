"""A disk that forgets: what a power cut may leave of what went through `fedmem.storage.files`.

Invariants
- Only what was synced is sure: the bytes of a file by its own fsync, its name by that of its folder.
- Of everything else any part may survive, in any order, and of a write any half: names without bytes, bytes without
  names, the later of two changes without the earlier.
- The disk is judged by what became of the files and by the syncs that were really called, not by what the file layer
  says that it does. SQLite's own files are taken as they are; `kills` is about them.

    with recorded(folder) as disk:
        ...                       # operations through `disk.files`
    for cut in disk.cuts:
        for kept in states(cut, 12):
            write_state(cut, kept, other_folder)
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fedmem.storage.files import Files

SQLITE = ("vault.db", "vault.db-wal", "vault.db-shm")
IGNORED = frozenset({*SQLITE, "lock", "leases", "reserve"})
DROPPED, KEPT, TORN = 0, 1, 2
Name = tuple[int, str]  # inode of the folder, name in it


@dataclass(frozen=True)
class Data:
    """Bytes `at` … of a file became `new`; it has `length` bytes since."""

    inode: int
    at: int
    new: bytes
    length: int

    def on(self, content: bytes, *, torn: bool) -> bytes:
        """The file's content after this write, or after half of it."""
        grown = content[: self.length].ljust(self.length, b"\0")
        new = self.new[: len(self.new) // 2] if torn else self.new
        return grown[: self.at] + new + grown[self.at + len(new) :]


@dataclass(frozen=True)
class Entry:
    """A name came (`new`), went (`old`), or moved from `old` to `new`."""

    inode: int
    old: Name | None
    new: Name | None


@dataclass
class View:
    """Files and folders by inode."""

    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=dict)

    def copy(self) -> "View":
        """A copy that later changes leave alone."""
        return View(dict(self.files), {inode: dict(names) for inode, names in self.folders.items()})

    def apply(self, change: Data | Entry, choice: int) -> None:
        """Let a change survive, whole or torn; a name is never torn."""
        if isinstance(change, Data):
            before = self.files.get(change.inode, b"")
            self.files[change.inode] = change.on(before, torn=choice == TORN)
            return
        if change.old and self.folders.get(change.old[0], {}).get(change.old[1]) == change.inode:
            del self.folders[change.old[0]][change.old[1]]
        if change.new:
            self.folders.setdefault(change.new[0], {})[change.new[1]] = change.inode


@dataclass(frozen=True)
class Cut:
    """One moment at which the power may go.

    Attributes:
        before: the operation that was about to start, or "end".
        durable: what is sure.
        pending: what is not, in the order in which it happened.
        sqlite: SQLite's files as they are.
    """

    before: str
    root: int
    durable: View
    pending: tuple[Data | Entry, ...]
    sqlite: dict[Path, bytes]
    acknowledged: bool


class Disk:
    """Watches a folder; each operation of `files` is a moment at which the power may go."""

    def __init__(self, folder: Path, kind: type[Files] = Files) -> None:
        self.files = kind(self._before)
        self.cuts: list[Cut] = []
        self.acknowledged = False
        self._folder = folder
        self._root = folder.stat().st_ino
        self._held: dict[int, int] = {}  # open descriptors, so that no inode is used twice
        self._now = self._read()
        self._durable = self._now.copy()
        self._pending: list[Data | Entry] = []

    def cut(self, before: str) -> None:
        """Remember what a power cut at this moment may leave."""
        self._notice()
        sqlite = {path: path.read_bytes() for path in self._folder.rglob("vault.db*") if path.name in SQLITE[:2]}
        known = Cut(before, self._root, self._durable.copy(), tuple(self._pending), sqlite, self.acknowledged)
        self.cuts.append(known)

    def settle(self) -> None:
        """From here on: everything so far is sure, and no moment of it counts."""
        self._notice()
        self.cuts, self._pending, self._durable = [], [], self._now.copy()

    def synced(self, handle: int) -> None:
        """What an fsync of this descriptor makes sure."""
        self._notice()
        inode = os.fstat(handle).st_ino
        sure = [change for change in self._pending if _is_sure(change, inode)]
        for change in sure:
            self._durable.apply(change, KEPT)
            self._pending.remove(change)
        self.cut("after fsync")

    def close(self) -> None:
        """Let go of the files."""
        for handle in self._held.values():
            os.close(handle)

    def _before(self, operation: str, path: Path) -> None:
        if operation != "read":
            self.cut(operation)

    def _notice(self) -> None:
        """Compare with the last look; what changed is pending."""
        now = self._read()
        for inode, content in now.files.items():
            before = self._now.files.get(inode, b"")
            if content != before:
                self._pending.append(_difference(inode, before, content))
        self._pending += _moves(self._names(self._now), self._names(now))
        self._now = now

    def _names(self, view: View) -> dict[Name, int]:
        return {(folder, name): inode for folder, names in view.folders.items() for name, inode in names.items()}

    def _read(self) -> View:
        view = View()
        for folder, below, names in os.walk(self._folder):
            below[:] = [name for name in below if name not in IGNORED]
            listed = view.folders[self._hold(Path(folder))] = {}
            for name in below:
                listed[name] = self._hold(Path(folder, name))
            for name in (name for name in names if name not in IGNORED):
                listed[name] = self._hold(Path(folder, name))
                view.files[listed[name]] = Path(folder, name).read_bytes()
        return view

    def _hold(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self._held:
            self._held[inode] = os.open(path, os.O_RDONLY)
        return inode


@contextmanager
def recorded(folder: Path, kind: type[Files] = Files) -> Iterator[Disk]:
    """Watch `folder`; every fsync that Python code calls is noticed, and not paid for."""
    disk, real = Disk(folder, kind), os.fsync
    os.fsync = disk.synced  # type: ignore[assignment]
    try:
        yield disk
        disk.cut("end")
    finally:
        os.fsync = real
        disk.close()


def states(cut: Cut, limit: int) -> list[tuple[int, ...]]:
    """What may survive of a cut's pending changes, at most `limit` choices: the plain ones first, then drawn ones."""
    count = len(cut.pending)
    none, whole = (DROPPED,) * count, (KEPT,) * count
    found = [none, whole, *(whole[:i] + none[i:] for i in range(1, count))]
    for i, change in enumerate(cut.pending):
        others = ((none, KEPT), (whole, DROPPED), *(((whole, TORN), (none, TORN)) if isinstance(change, Data) else ()))
        found += [(*rest[:i], choice, *rest[i + 1 :]) for rest, choice in others]
    draw = random.Random(count)
    found += [tuple(draw.choice((DROPPED, KEPT, TORN)) for _ in range(count)) for _ in range(limit if count > 2 else 0)]
    return list(dict.fromkeys(found))[:limit]


def tree(cut: Cut, kept: tuple[int, ...]) -> dict[Path, bytes | None]:
    """The files (and folders, as None) after the cut, by their path."""
    view = cut.durable.copy()
    for change, choice in zip(cut.pending, kept, strict=True):
        if choice != DROPPED:
            view.apply(change, choice)
    found: dict[Path, bytes | None] = {}
    _walk(view, cut.root, Path(), found)
    return found


def write_state(cut: Cut, kept: tuple[int, ...], watched: Path, folder: Path) -> None:
    """Make `folder` what the cut left of the folder `watched`."""
    folder.mkdir(parents=True)
    for path, content in tree(cut, kept).items():
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
    for path, content in cut.sqlite.items():
        target = folder / path.relative_to(watched)
        if target.parent.is_dir():
            target.write_bytes(content)


def _walk(view: View, inode: int, path: Path, found: dict[Path, bytes | None]) -> None:
    for name, below in view.folders.get(inode, {}).items():
        if below in view.folders:
            found[path / name] = None
            _walk(view, below, path / name, found)
        else:
            found[path / name] = view.files.get(below, b"")  # a name whose bytes never came


def _is_sure(change: Data | Entry, inode: int) -> bool:
    if isinstance(change, Data):
        return change.inode == inode
    return any(name is not None and name[0] == inode for name in (change.old, change.new))


def _difference(inode: int, before: bytes, after: bytes) -> Data:
    start = _common(before, after)
    # Only where the length stays is what follows a change known to be older than it.
    same = _common(before[start:][::-1], after[start:][::-1]) if len(before) == len(after) else 0
    return Data(inode, start, after[start : len(after) - same], len(after))


def _common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _moves(before: dict[Name, int], now: dict[Name, int]) -> list[Entry]:
    gone = {inode: name for name, inode in before.items() if now.get(name) != inode}
    moved = {inode for name, inode in now.items() if before.get(name) != inode}
    came = [Entry(inode, gone.get(inode), name) for name, inode in now.items() if before.get(name) != inode]
    replaced = {entry.new for entry in came}
    return came + [Entry(i, name, None) for i, name in gone.items() if i not in moved and name not in replaced]
