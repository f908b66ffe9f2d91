"""The state that every part of an open vault shares: files, key table, database, and the rules for using them.

Invariants
- Each reader or writer of the state holds the vault's one lock, so that threads of a process take turns.
- The state belongs to the process that opened it. A forked child forgets the keys and is refused.
- A change starts from a settled state: the rest of a failed change is finished or undone first (I7).
- The keystore notes each change after it is durable and before it is reported. So an older part of the vault that is
  put back is noticed (see `acknowledgement`, `ledger_anchor`).
- A reader checks the generation before each fetch. After an erasure it forgets its keys, releases its lease and must
  open the vault again (I4).
- To forget is to overwrite: keys, rows of blocks and vectors, before the lease is released (see `PrivateMemory`).
- An item without a key does not exist, even if the database holds its row.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from fedmem.errors import Refused, UsageError, VersionMismatch
from fedmem.storage import forks
from fedmem.storage.files import Files
from fedmem.storage.locks import WriterLock
from fedmem.storage.private_memory import PrivateBuffer, PrivateMemory, Readable
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
        root: the vault's folder.
        id: the vault's random id.
        simulated: True if run keys may come from a seed.
        write: True if the vault is open for writing.
        writer: the writer lock of a vault that is open for writing, else None.
        recover: finishes or undoes the rest of a failed change.
        acknowledge: notes a durable change in the keystore.
        is_settled: False during a change, and after a failed one.
        lease: the lease of a reader, else None.
        trained_topics: topics whose training runs in this process.
        memory: rows, vectors and caches of answers that were made from this vault.
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
    memory: PrivateMemory = field(default_factory=PrivateMemory)
    _is_changing: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        forks.watch(self)
        _openings.add(self)

    @property
    def lock(self) -> forks.ProcessLock:
        """The lock of this open vault; the database takes it too."""
        return self.database.lock

    def reading(self) -> None:
        """Check that this vault may be read, and load a newer key table for a reader.

        Raises:
            StaleReader: an erasure happened since the vault was opened. The keys are forgotten.
            UsageError: the vault is closed.
        """
        with self.lock:
            self._check_open()
            if self.write:
                return
            _, generation, serial = self.table.peek()
            if generation != self.table.generation:
                self.stop_reading()
                raise StaleReader("Something was erased from this vault since it was opened here. Open it again.")
            if serial != self.table.serial:
                self.table.load()

    def generation(self) -> int:
        """Return the vault's current generation. A reader that meets a newer one loses its keys and its lease."""
        with self.lock:
            self._check_open()
            if self.write:
                return self.table.generation
            current = self.table.peek()[1]
            if current != self.table.generation:
                self.stop_reading()
            return current

    def stop_reading(self) -> None:
        """Make a reader forget everything and release its lease. A writer is left as it is."""
        if self.lease is not None:
            self._forget()

    def take_lease(self, lease: Lease) -> None:
        """Hold `lease` until this opening forgets, is closed, or is dropped without being closed."""
        self.lease = lease
        weakref.finalize(self, _let_go, self.memory, lease)

    def _forget(self) -> None:
        """Overwrite rows, vectors, caches and keys, and then release the lease."""
        self.memory.clear()
        self.table.forget()
        if self.lease is not None:
            self.lease.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Guard one change of the vault; a change within a change is part of the outer one.

        A failed change is settled before the next one starts.

        Raises:
            Refused: the vault is open for reading only.
            UsageError: the vault is closed.
        """
        with self.lock:
            self._check_open()
            if not self.write:
                raise Refused("This vault is open for reading only. Open it with write=True.")
            if self._is_changing:
                yield
                return
            if not self.is_settled:
                self.database.overwrite_log()
                self.recover()
            self.is_settled, self._is_changing = False, True
            try:
                yield
            finally:
                self._is_changing = False
            self.is_settled = True
            self.acknowledge()

    def seal(self, kind: str, item: str, key: Readable, data: Readable) -> bytes:
        """Return `data` as a sealed cell, bound to this vault, the kind and the item."""
        return container.seal_cell(key, data, identity=self.identity(kind, item))

    def open_cell(self, kind: str, item: str, sealed: bytes) -> PrivateBuffer:
        """Return the content of a cell, opened with the item's own key. Raises VerificationFailed."""
        return container.open_cell(self.table.keys[item], sealed, identity=self.identity(kind, item))

    def identity(self, kind: str, item: str) -> str:
        """Return the identity to which a ciphertext is bound: kind, vault and item."""
        return f"{kind}/{self.id}/{item}"

    def block_file(self, block_id: str) -> Path:
        """Return the path of the container of a block."""
        return self.root / "blocks" / f"{block_id}.fmb"

    def close(self) -> None:
        """Release keys, database and locks. Calling it twice is fine, also in a forked child."""
        if self.lock.is_inherited:
            return
        with self.lock:
            self.is_closed = True
            self._forget()
            self.database.close()
            if self.writer is not None:
                self.writer.release()

    def disown(self) -> None:
        """Forget the keys in a forked child, which inherited this object. `memory` is overwritten by itself."""
        self.table.forget()

    def _check_open(self) -> None:
        if self.is_closed:
            raise UsageError("This vault object is closed. Open the vault again.")


_openings: "weakref.WeakSet[Core]" = weakref.WeakSet()


def forget_in_this_process(marks: Collection[str]) -> None:
    """Make the openings of this process that hold these leases forget everything, as `Core.stop_reading` does.

    An opening that another thread is using at the moment is left out: waiting for it could be a deadlock.

    Args:
        marks: names of the leases, as `stale_readers` returns them.
    """
    for core in list(_openings):
        if core.lease is not None and core.lease.path.name in marks and core.lock.enter_at_once():
            try:
                core.stop_reading()
            finally:
                core.lock.__exit__()


def _let_go(memory: PrivateMemory, lease: Lease) -> None:
    memory.clear()
    lease.release()


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
    """Run every public method of a class under the lock of its vault, so that no method lacks it."""
    for name, member in list(vars(kind).items()):
        if callable(member) and not name.startswith("_") and name != "close":
            setattr(kind, name, serialised(member))
    return kind


def batches(ids: Iterable[str], size: int = 500) -> Iterator[list[str]]:
    """Return `ids`, sorted, in lists of at most `size`, which fit into one SQL statement."""
    ordered = sorted(ids)
    return (ordered[i : i + size] for i in range(0, len(ordered), size))
