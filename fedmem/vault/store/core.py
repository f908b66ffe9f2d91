"""State that every part of an open vault shares: files, key table, database, and the rules for touching them.

Invariants
- Whoever reads or changes the state holds the vault's one lock, so that threads of a process take turns.
- The state belongs to the process that opened it. A forked child forgets the keys and is refused.
- A change starts from a settled state: what a failed one left is finished or undone first (I7).
- The keystore notes each change after it is durable and before it is reported, so that an older part of the vault that
  is put back is noticed (see `acknowledgement`, `heads`).
- A reader checks the generation before each fetch; after an erasure it forgets its keys, gives up its lease and must
  open the vault again (I4).
- Items without a key do not exist, whatever the database says.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from fedmem.errors import Refused, UsageError, VersionMismatch
from fedmem.storage import forks
from fedmem.storage.files import Files
from fedmem.storage.locks import WriterLock
from fedmem.vault.crypto import container
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.crypto.keystore import Keystore
from fedmem.vault.store.database import Database
from fedmem.vault.store.leases import Lease


class StaleReader(VersionMismatch):
    """An erasure happened since this reader opened the vault."""


@dataclass(eq=False)
class Core:
    """The open parts of one vault.

    Attributes:
        writer: the lock of a vault that is open for writing, else None.
        recover: finishes or undoes what a failed change left.
        acknowledge: notes a change in the keystore once it is durable.
        trained_topics: topics whose training runs in this process.
        is_settled: False while a change is made, and after one that failed.
    """

    root: Path
    id: str
    simulated: bool
    files: Files
    keystore: Keystore
    table: KeyTable
    database: Database
    write: bool
    writer: WriterLock | None = None
    recover: Callable[[], None] = lambda: None
    acknowledge: Callable[[], None] = lambda: None
    is_closed: bool = False
    is_settled: bool = field(default=True)
    lease: Lease | None = None
    trained_topics: set[str] = field(default_factory=set)
    _is_changing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        forks.watch(self)

    @property
    def lock(self) -> forks.ProcessLock:
        """The one lock of this opened vault; the database takes it too."""
        return self.database.lock

    def reading(self) -> None:
        """Check that this object may read, and renew what a reader knows. Raises StaleReader after an erasure."""
        with self.lock:
            self._check_open()
            if self.write:
                return
            _, generation, serial = self.table.peek()
            if generation != self.table.generation:
                self.let_go()
                raise StaleReader("Something was erased from this vault since it was opened here. Open it again.")
            if serial != self.table.serial:
                self.table.load()

    def generation(self) -> int:
        """Return the vault's generation now. A reader that meets a newer one lets go of what it holds."""
        with self.lock:
            self._check_open()
            if self.write:
                return self.table.generation
            now = self.table.peek()[1]
            if now != self.table.generation:
                self.let_go()
            return now

    def let_go(self) -> None:
        """Forget the data keys and give the lease back: this reader holds the vault no more."""
        if self.lease is not None:
            self.table.keys = {}
            self.lease.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Guard one change of the vault; a change within a change is part of it.

        A failed change is settled before the next one starts. Raises Refused where the vault is open for reading.
        """
        with self.lock:
            self._check_open()
            if not self.write:
                raise Refused("This vault is open for reading only. Open it with write=True.")
            if self._is_changing:
                yield
                return
            if not self.is_settled:
                self.database.bury()
                self.recover()
            self.is_settled, self._is_changing = False, True
            try:
                yield
            finally:
                self._is_changing = False
            self.is_settled = True
            self.acknowledge()

    def seal(self, kind: str, item: str, key: bytes, data: bytes) -> bytes:
        """A sealed cell bound to this vault, the kind and the item."""
        return container.seal_cell(key, data, identity=self.identity(kind, item))

    def open_cell(self, kind: str, item: str, sealed: bytes) -> bytes:
        """Open a cell with the item's own key."""
        return container.open_cell(self.table.keys[item], sealed, identity=self.identity(kind, item))

    def identity(self, kind: str, item: str) -> str:
        """What a ciphertext is bound to."""
        return f"{kind}/{self.id}/{item}"

    def block_file(self, block_id: str) -> Path:
        """Where the container of a block lies."""
        return self.root / "blocks" / f"{block_id}.fmb"

    def close(self) -> None:
        """Let go of keys, database and locks; calling it twice is fine, also in a forked child."""
        if self.lock.is_inherited:
            return
        with self.lock:
            self.is_closed = True
            self.let_go()
            self.database.close()
            if self.writer is not None:
                self.writer.release()

    def disown(self) -> None:
        """Forget the keys in a forked child, which inherited this object."""
        self.table.keys = {}

    def _check_open(self) -> None:
        if self.is_closed:
            raise UsageError("This vault object is closed. Open the vault again.")


Rest = ParamSpec("Rest")
Result = TypeVar("Result")
Kind = TypeVar("Kind", bound=type[Any])


class HasCore(Protocol):
    """An object that works on an open vault."""

    @property
    def core(self) -> Core: ...


Item = TypeVar("Item", bound=HasCore)


def serialised(
    work: Callable[Concatenate[Item, Rest], Result],
) -> Callable[Concatenate[Item, Rest], Result]:
    """Run a function or method under the lock of the vault that is its first argument."""

    @functools.wraps(work)
    def locked(item: Item, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with item.core.lock:
            return work(item, *args, **kwargs)

    return locked


def serialised_methods(kind: Kind) -> Kind:
    """Run every public method of a class under the lock of its vault, so that none can be forgotten."""
    for name, member in list(vars(kind).items()):
        if callable(member) and not name.startswith("_") and name != "close":
            setattr(kind, name, serialised(member))
    return kind


def batches(ids: Iterable[str], size: int = 500) -> Iterator[list[str]]:
    """`ids` in sorted pieces that fit into one SQL statement."""
    ordered = sorted(ids)
    return (ordered[i : i + size] for i in range(0, len(ordered), size))
