"""What the sweep cuts: operations on a small vault, and the states in which a cut may leave it.

Invariants
- Old and new states are computed from the operation's own words, not read from a vault that performed it.
- A vault that is examined is opened as any app opens it; an erasure that was begun is resumed, and is then done.
- After the examination the vault must still take a write.

    place = Place.build(folder)
    operation = OPERATIONS["add"]
    problem = operation.judge(place, acknowledged=False)
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import Busy, FedmemError
from fedmem.storage.files import Files
from fedmem.vault.backup import backup, restoring
from fedmem.vault.vault import ALL, NewRecord, Record, Vault
from fedmem.vault.vault import TrainingRun as Training

SUBJECT, RELEASE = "alice", "release-1"
TOPIC, OTHER, RUNNING, AGAIN, FRESH = "topic-health-9c1e", "topic-money", "topic-running", "topic-again", "topic-fresh"
ROWS = b"rows-canary-51d2" * 2000
SPEND = {"sigma": 1.0}
DIED = 9  # exit code of a second writer that is killed

Act = Callable[[], object]
Run = Callable[[Path], str]
Point = tuple[str, Run]
"""A name, and what tries that point in a scratch folder and says what is wrong, or ""."""


@dataclass(frozen=True)
class Seen:
    """What the ordinary path shows of a vault; ids are left out, since they are drawn anew each time.

    Attributes:
        records: (topic, text, path, digest of the vector), sorted.
        blocks: (topic, version, digest of the rows), sorted.
        events: kinds of the ledger's events, in order.
        erased: how many erasures are completed.
    """

    records: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[str, ...], ...]
    events: tuple[str, ...]
    erased: int


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        prepare: gets the open vault and gives what is then cut.
        after: the new state, from the old one.
        base: the old state, from the one that the vault was built in, where `prepare` changes it.
        between: a further state that the operation may stop in, where it has two steps.
        again: repeats the operation where a cut left no vault at all; None where that must not be.
        check: what else is wrong, given whether the operation was acknowledged.
    """

    name: str
    prepare: Callable[[Vault], Act]
    after: Callable[[Seen], Seen]
    between: Callable[[Seen], Seen] | None = None
    again: "Callable[[Place], object] | None" = None
    check: "Callable[[Place, bool], str] | None" = None
    base: Callable[[Seen], Seen] = lambda before: before

    def old(self, before: Seen) -> tuple[Seen, ...]:
        """The states that a cut before the acknowledgement may leave, beside the new one."""
        base = self.base(before)
        return (base,) if self.between is None else (base, self.between(base))

    def new(self, before: Seen) -> Seen:
        """The state after the operation, in a vault that was built in the state `before`."""
        return self.after(self.base(before))

    @property
    def erases(self) -> bool:
        """Whether it is an erasure, which may end as partial and then rolls forward."""
        return self.after is _erased

    def judge(self, place: "Place", acknowledged: bool) -> str:
        """What is wrong with a vault that a cut of this operation left, or ""."""
        if self.again is not None and not (place.root / "vault.json").exists():
            if acknowledged:
                return "the vault that was acknowledged is not there"
            with home(place.folder):
                self.again(place)
            acknowledged = True
        problem = examine(place, () if acknowledged else self.old(place.before), (self.new(place.before),))
        if not problem and self.check is not None:
            with home(place.folder):
                problem = self.check(place, acknowledged)
        return problem


@dataclass(frozen=True)
class Place:
    """A folder with a vault and the home that holds its key slots.

    Attributes:
        before: the state that the vault was built in.
    """

    folder: Path
    before: Seen

    @property
    def root(self) -> Path:
        """The vault's root."""
        return self.folder / "v"

    @classmethod
    def build(cls, folder: Path) -> "Place":
        """A vault with three topics, shareable records, four blocks and two open runs."""
        folder.mkdir(parents=True)
        with home(folder), Vault.create(folder / "v", subject=SUBJECT) as vault:
            for topic, count in ((TOPIC, 4), (OTHER, 2), (None, 2)):
                vault.add_records(some_records(topic, count))
            for topic in (TOPIC, TOPIC, OTHER):
                run = vault.begin_run(topic, RELEASE, {}, "data", [], SPEND)
                vault.finish_run(run, topic, RELEASE, ROWS, 2, 4, 8)
            running(vault)
            vault.begin_run(AGAIN, RELEASE, {"steps": 1}, "data", [], SPEND)
            return cls(folder, seen(vault))

    def copy(self, folder: Path) -> "Place":
        """The same vault somewhere else; what was there goes."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """FEDMEM_HOME inside `folder`, for the time being."""
    before = os.environ.get("FEDMEM_HOME")
    os.environ["FEDMEM_HOME"] = str(folder / "home")
    try:
        yield
    finally:
        if before is None:
            del os.environ["FEDMEM_HOME"]
        else:
            os.environ["FEDMEM_HOME"] = before


@contextmanager
def opened(place: Place, files: Files | None = None) -> Iterator[Vault]:
    """The vault of a place, open for writing."""
    with home(place.folder), Vault.open(place.root, subject=SUBJECT, files=files) as vault:
        yield vault


def some_records(topic: str | None, count: int) -> list[NewRecord]:
    """The same records at every call."""
    vectors = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
    return [NewRecord(f"canary-text-7f3a {topic} {i}", topic, (i,), vectors[i], RELEASE) for i in range(count)]


def running(vault: Vault) -> Training:
    """Begin the run that `seal` ends, or resume it."""
    return vault.begin_run(RUNNING, RELEASE, {"steps": 1}, "data", [], SPEND)


def seen(vault: Vault) -> Seen:
    """The state of an open vault, every record and row opened."""
    records = vault.records(ALL)
    blocks = [(block.topic, str(block.version), _short(vault.block_rows(block.id))) for block in vault.blocks()]
    events = tuple(event.kind for event in vault.ledger.events())
    erased = sum(status.state == "completed" for status in erasure.status(vault))
    return Seen(rows_of(records), tuple(sorted(blocks)), events, erased)


def examine(place: Place, old: tuple[Seen, ...], new: tuple[Seen, ...]) -> str:
    """What is wrong with a vault after a cut, or "". An erasure that was begun ends in one of the `new` states."""
    try:
        with opened(place) as vault:
            begun = bool(vault.unfinished_erasures())
            erasure.resume(vault)
            now = seen(vault)
            if now not in (new if begun else old + new):
                return f"neither the old state nor the new one: {_told(now)}"
            problem = _untidy(place, vault)
            vault.add_records(some_records(OTHER, 1))
            if not problem and len(vault.records(ALL)) != len(now.records) + 1:
                problem = "it takes no more writes"
            return problem
    except FedmemError as error:
        return f"{type(error).__name__}: {error}"


def _untidy(place: Place, vault: Vault) -> str:
    """Leftovers that no opening may leave, and erasures that do not verify."""
    # A slot that was never renamed never sealed anything; the next key that is made sweeps it away.
    left = sorted(path.name for path in place.root.rglob("*.tmp"))
    epochs = sorted(path.name for path in place.folder.glob("home/slots/*/epoch-*"))
    strays = {path.stem for path in (place.root / "blocks").iterdir()} ^ {block.id for block in vault.blocks()}
    if left or len(epochs) != 1 or strays:
        return f"left behind: {left} {epochs} {sorted(strays)}"
    for status in erasure.status(vault):
        if status.state not in ("completed", "failed"):
            return f"an erasure is {status.state}"
        if status.receipt_path is not None:
            erasure.receipt.verify(status.receipt_path.read_bytes(), (place.root / "device.pub").read_bytes())
            if not erasure.verify(vault, status.id, deep=True).is_clean:
                return "an erasure does not verify"
    return ""


def _told(now: Seen) -> str:
    blocks = ",".join(topic[6:] for topic, *_ in now.blocks)
    return f"{len(now.records)} records, blocks {blocks}, events {','.join(now.events)}, {now.erased} erased"


def rows_of(records: Iterable[Record | NewRecord]) -> tuple[tuple[str, ...], ...]:
    """Records as a state holds them."""
    return tuple(sorted((str(r.topic), r.text, str(r.path), _short(r.vector.tobytes())) for r in records))


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def more(before: Seen, *events: str, records: tuple[tuple[str, ...], ...] = ()) -> Seen:
    """A state with these events and records more."""
    return replace(before, records=tuple(sorted(before.records + records)), events=before.events + events)


def _begin(topic: str, steps: int) -> Callable[[Vault], Act]:
    return lambda vault: lambda: vault.begin_run(topic, RELEASE, {"steps": steps}, "data", [], SPEND)


def _seal(vault: Vault) -> Act:
    run = running(vault)
    return lambda: vault.finish_run(run, RUNNING, RELEASE, ROWS, 2, 4, 8)


def _sealed(before: Seen) -> Seen:
    return replace(more(before, "run_finished"), blocks=tuple(sorted([*before.blocks, (RUNNING, "1", _short(ROWS))])))


def _erase(vault: Vault) -> Act:
    planned = erasure.plan(vault, Scope.topic(TOPIC))
    return lambda: erasure.execute(vault, planned, planned.digest)


def _retire(vault: Vault) -> Act:
    """An erasure with a backup in reach."""
    backup.create(vault, _backup(vault.root))
    return _erase(vault)


def _restore(vault: Vault) -> Act:
    """The vault is lost, with all that came after its backup."""
    backup.create(vault, _backup(vault.root))
    vault.add_records(some_records(FRESH, 1))
    vault.close()
    shutil.rmtree(vault.root)
    return lambda: _restored(vault.root, vault.core.files)


def _restored(root: Path, files: Files | None = None) -> object:
    return restoring.restore(_backup(root), root, subject=SUBJECT, files=files)


def _whole(place: Place, acknowledged: bool) -> str:
    """A backup is there whole, or not at all."""
    if not _backup(place.root).exists():
        return "the backup that was acknowledged is not there" if acknowledged else ""
    try:
        backup.verify(_backup(place.root))
    except FedmemError as error:
        return f"the backup does not verify: {error}"
    return ""


def _backup(root: Path) -> Path:
    return root.with_name("backup")


def _erased(before: Seen) -> Seen:
    records = tuple(record for record in before.records if record[0] != TOPIC)
    blocks = tuple(block for block in before.blocks if block[0] != TOPIC)
    return Seen(records, blocks, (*before.events, "erased"), before.erased + 1)


def _second(vault: Vault, work: Callable[[Vault], object]) -> Vault:
    """Let a second writer make a change, and return an open vault of the first. Where the lock allows only one writer
    at a time, they take turns; else the first stays open, and meets a vault that changed."""
    try:
        second, first = _opened_again(vault), vault
    except Busy:
        vault.close()
        second, first = _opened_again(vault), None
    with second:
        work(second)
    return first or _opened_again(vault)


def _opened_again(vault: Vault) -> Vault:
    return Vault.open(vault.root, subject=SUBJECT, files=vault.core.files)


def _add_second(vault: Vault) -> Act:
    """Another writer's records are acknowledged before this one adds its own."""
    first = _second(vault, lambda second: second.add_records(some_records(TOPIC, 1)))
    return lambda: _closing(first, lambda: first.add_records(some_records(FRESH, 3)))


def _erase_second(vault: Vault) -> Act:
    """Another writer adds to the topic before this one plans its erasure."""
    first = _second(vault, lambda second: second.add_records(some_records(TOPIC, 1)))
    act = _erase(first)
    return lambda: _closing(first, act)


def _add_erased(vault: Vault) -> Act:
    """Another writer erases a topic before this one adds."""
    first = _second(vault, lambda second: _erase(second)())
    return lambda: _closing(first, lambda: first.add_records(some_records(FRESH, 3)))


def _add_killed(vault: Vault) -> Act:
    """Another writer is killed in the middle of an addition: its keys are on the disk, and its records are not."""
    vault.close()  # before the fork: SQLite's state must not be in two processes
    child = os.fork()
    if child == 0:
        try:
            with Vault.open(vault.root, subject=SUBJECT, files=Files(_dies_at_the_log)) as second:
                second.add_records(some_records(FRESH, 2))
        finally:
            os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != DIED:
        raise RuntimeError("the second writer was not killed: it works in other steps now")
    first = _opened_again(vault)
    return lambda: _closing(first, lambda: first.add_records(some_records(FRESH, 3)))


def _dies_at_the_log(operation: str, path: Path) -> None:
    if (operation, path.name) == ("fsync", "table.log"):
        os._exit(DIED)


def _closing(vault: Vault, act: Act) -> object:
    with vault:
        return act()


def _with_second(before: Seen) -> Seen:
    return more(before, records=rows_of(some_records(TOPIC, 1)))


def _with_fresh(before: Seen) -> Seen:
    return more(before, records=rows_of(some_records(FRESH, 3)))


_ALL = (
    Operation(
        "add",
        lambda vault: lambda: vault.add_records(some_records(FRESH, 3)),
        _with_fresh,
    ),
    Operation("learn", _begin(FRESH, 1), lambda before: more(before, "spend")),
    # A run whose plan changed ends the open one first; its key is gone before the new run is charged.
    Operation(
        "relearn",
        _begin(AGAIN, 2),
        lambda before: more(before, "run_failed", "spend"),
        lambda before: more(before, "run_failed"),
    ),
    Operation("seal", _seal, _sealed),
    Operation("erase", _erase, _erased),
    Operation("retire", _retire, _erased),
    Operation(
        "backup",
        lambda vault: lambda: backup.create(vault, _backup(vault.root)),
        lambda before: before,
        check=_whole,
    ),
    # Its two open runs end as failed: their keys are in no backup.
    Operation(
        "restore",
        _restore,
        lambda before: more(before, "run_failed", "run_failed"),
        again=lambda place: _restored(place.root),
    ),
    # Two writers: what the other one acknowledged is there, whatever cuts this one.
    Operation("add-second", _add_second, _with_fresh, base=_with_second),
    Operation("erase-second", _erase_second, _erased, base=_with_second),
    Operation("add-erased", _add_erased, _with_fresh, base=_erased),
    Operation("add-killed", _add_killed, _with_fresh),
)
OPERATIONS = {operation.name: operation for operation in _ALL}
