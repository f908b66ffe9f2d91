"""The state that every part of an open vault shares: files, key table, database, and the rules for using them.

Invariants
- Each reader or writer of the state holds the vault's one lock, so that threads of a process take turns.
- The state belongs to the process that opened it. A forked child forgets the keys and is refused.
- A change takes the vault's writer lock for as long as it takes, and first reads what other processes wrote. The rest
  of a failed or killed change is finished or undone before it (I7).
- The keystore notes each change after it is durable and before it is reported. So an older part of the vault that is
  put back is noticed (see `acknowledgement`, `ledger_anchor`).
- Every opened vault holds a lease of the generation that it saw, and checks the generation before each fetch. After an
  erasure by another process it forgets its keys and content and gives the lease back (I4). A vault that is open for
  writing then reads the new table; one that is open for reading must be opened again.
- To forget is to overwrite: keys, rows of blocks and vectors, before the lease is released (see `PrivateMemory`).
- An item without a key does not exist, even if the database holds its row.
"""

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedmem.errors import KeystoreError, Refused, UsageError, VersionMismatch
from fedmem.storage import forks
from fedmem.storage.canonical import digest
from fedmem.storage.files import Files
from fedmem.storage.locks import WriterLock
from fedmem.storage.private_memory import PrivateBuffer, PrivateMemory, Readable
from fedmem.vault.crypto import container
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.crypto.keystore import Keystore
from fedmem.vault.crypto.vault_header import NAME as HEADER
from fedmem.vault.store import watcher
from fedmem.vault.store.database import Database
from fedmem.vault.store.leases import Lease

LOCK = "lock"


def take_writer_lock(root: Path, timeout: float, while_waiting: Callable[[], object] = lambda: None) -> WriterLock:
    """Return the writer lock of the vault at `root`, held.

    Args:
        root: the vault's folder.
        timeout: seconds to wait for other writers.
        while_waiting: is called now and then while it waits.

    Raises:
        Busy: other writers held it for longer than `timeout`. StorageError: the lock file cannot be opened.
    """
    return WriterLock(root / LOCK, timeout=timeout, is_fair=True, while_waiting=while_waiting)


class StaleReader(VersionMismatch):
    """An error: something was erased since this vault was opened, or since the content in use was read."""


class KeysMoved(VersionMismatch):
    """An error: another process moved the keys of this vault to another keystore."""


@dataclass(eq=False)
class Core:
    """The open parts of one vault.

    Attributes:
        root: the vault's folder.
        id: the vault's random id.
        simulated: True if run keys may come from a seed.
        write: True if the vault is open for writing.
        timeout: seconds that a change waits for other writers.
        catch_up: reads what other processes wrote, and finishes or undoes the rest of a failed change.
        acknowledge: notes a durable change in the keystore.
        forget: functions that overwrite content in memory; each is called when keys are forgotten.
        is_settled: False during a change, and after a failed one.
        lease: the lease of this opened vault; None while it is being opened.
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
    timeout: float = 0.0
    catch_up: Callable[[], None] = lambda: None
    acknowledge: Callable[[], None] = lambda: None
    forget: list[Callable[[], None]] = field(default_factory=list)
    is_closed: bool = False
    is_settled: bool = field(default=True)
    lease: Lease | None = None
    trained_topics: set[str] = field(default_factory=set)
    writer: WriterLock | None = None
    memory: PrivateMemory = field(default_factory=PrivateMemory)
    _is_changing: bool = field(default=False, init=False)
    _uses: Counter[Lease] = field(default_factory=Counter, init=False)
    _using_threads: Counter[int] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        forks.watch(self)
        self.forget.append(self.memory.clear)
        _openings.add(self)

    @property
    def lock(self) -> forks.ProcessLock:
        """The lock of this open vault; the database takes it too."""
        return self.database.lock

    def prepare_read(self) -> None:
        """Check that this vault may be read, and read what other processes added.

        Raises:
            StaleReader: the vault is open for reading, and something was erased. The keys are forgotten.
            UsageError: the vault is closed.
        """
        with self.lock:
            if self._has_erasure() and not self.write:
                raise StaleReader("Something was erased from this vault since it was opened here. Open it again.")
            if self.writer is None and self.lease is not None:
                self.refresh()
                self.take_lease()

    def generation(self) -> int:
        """Return the vault's current generation. If it is a newer one, keys and content in memory are forgotten."""
        with self.lock:
            if self._has_erasure():
                return self.table.numbers_on_disk()[1]
            return self.table.generation

    def notice(self) -> None:
        """Forget keys and content if another process erased something. Do nothing while a thread uses the vault.

        A lease that stayed behind when an erasure of this process failed is renewed.
        """
        if self.lock.acquire_within(0):
            try:
                if not self.is_closed and not self._has_erasure() and self.writer is None:
                    self.take_lease()
            finally:
                self.lock.release()

    def stop_reading(self) -> None:
        """Forget the data keys and the content in memory, and give the lease back."""
        self.table.forget()
        self.forget_content()
        if self.lease is not None and not self._uses[self.lease]:
            self.lease.release()

    def forget_content(self) -> None:
        """Overwrite the content in memory: rows, vectors, caches of answers. The keys stay."""
        for overwrite in self.forget:
            overwrite()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the present lease while the caller holds private content, which it gives up at the end of the block.

        The block has to look at `generation` between its steps, and to end when it is a newer one.
        """
        thread = threading.get_ident()
        with self.lock:
            lease = self.lease
            if lease is not None:
                self._uses[lease] += 1
                self._using_threads[thread] += 1
        try:
            yield
        finally:
            if lease is not None and not self.lock.is_inherited:
                with self.lock:
                    self._using_threads[thread] -= 1
                    self._end_use(lease)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the vault's writer lock: no other process changes the vault meanwhile. First catch up with the others.

        Raises:
            Refused: the vault is open for reading only.
            UsageError: the vault is closed.
            Busy: other processes changed the vault for longer than `timeout`.
            KeysMoved: another process moved the keys.
            StaleReader: something was erased during the wait, and this thread is in an `in_use` block.
        """
        with self.lock:
            self._check_open()
            if not self.write:
                raise Refused("This vault is open for reading only. Open it with write=True.")
            if self.writer is not None:
                yield
                return
            self.writer = take_writer_lock(self.root, self.timeout, self._check_while_waiting)
            try:
                self.catch_up()
                yield
            finally:
                self.end_turn()

    def end_turn(self) -> None:
        """Release the writer lock, if this object holds it."""
        if self.writer is not None:
            self.writer.release()
            self.writer = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Guard one change of the vault; a change within a change is part of the outer one.

        A failed change is settled before the next one starts.

        Raises:
            Refused, UsageError, Busy, KeysMoved: as `turn`.
        """
        with self.turn():
            if self._is_changing:
                yield
                return
            if not self.is_settled:
                self.catch_up()
            self.is_settled, self._is_changing = False, True
            try:
                yield
            finally:
                self._is_changing = False
            self.is_settled = True
            self.acknowledge()
            if self.lease is not None:
                self.take_lease()

    def seal(self, kind: str, item: str, key: Readable, data: Readable) -> bytes:
        """Return `data` as a sealed cell.

        Guarantees
            The cell is bound to this vault, to the kind and to the item (see `container`).

        Args:
            kind: what the cell holds, such as record.
            item: id of the item; "" for a fact of the vault.
            key: 32 uniformly random bytes.
            data: any length, also empty.
        """
        return container.seal_cell(key, data, identity=self.identity(kind, item))

    def open_cell(self, kind: str, item: str, sealed: bytes) -> PrivateBuffer:
        """Return the content of a cell, opened with the item's own key.

        Args:
            kind: the kind that it was sealed with.
            item: id of the item; its key is in the key table.
            sealed: the cell.

        Raises:
            VerificationFailed: another key, kind or item, or a changed cell.
        """
        return container.open_cell(self.table.keys[item], sealed, identity=self.identity(kind, item))

    def identity(self, kind: str, item: str) -> str:
        """Return the identity to which a ciphertext is bound: kind, vault and item.

        Args:
            kind: what the ciphertext holds, such as record.
            item: id of the item; "" for a fact of the vault.
        """
        return f"{kind}/{self.id}/{item}"

    def block_file(self, block_id: str) -> Path:
        """Return the path of the container of a block.

        Args:
            block_id: id of the block, 32 hex digits.
        """
        return self.root / "blocks" / f"{block_id}.fmb"

    def close(self) -> None:
        """Release keys, database and locks. Calling it twice is fine, also in a forked child."""
        if self.lock.is_inherited:
            return
        with self.lock:
            self.is_closed = True
            self.stop_reading()
            self.database.close()
            self.end_turn()

    def disown(self) -> None:
        """Forget keys and content in a forked child, which inherited this object."""
        self.table.forget()
        self.forget_content()

    def _has_erasure(self) -> bool:
        """Return True if another process erased something since the table was read; keys and content are then gone."""
        self._check_open()
        if self.writer is not None or self.table.numbers_on_disk()[1] == self.table.generation:
            return False
        self.stop_reading()
        return True

    def _check_while_waiting(self) -> None:
        if self._has_erasure() and self._using_threads[threading.get_ident()]:
            raise StaleReader("Something was erased from this vault meanwhile. Repeat the command.")

    def _end_use(self, lease: Lease) -> None:
        self._uses[lease] -= 1
        if not self._uses[lease]:
            del self._uses[lease]
            if lease is not self.lease or self.is_closed or not self.table.keys:
                lease.release()

    def take_lease(self) -> None:
        """Mark this process as a reader of the present generation, in place of an older mark."""
        while self.lease is None or not self.lease.is_held or self.lease.generation != self.table.generation:
            if self.lease is not None and self.lease.is_held and not self._uses[self.lease]:
                self.lease.move(self.table.generation)
            else:
                self.lease = Lease(self.root / "leases", self.table.generation)
                if self.write:  # a vault that is open for reading lets go at its next use
                    watcher.watch(self)
                weakref.finalize(self, _let_go, self.table, self.memory, self.lease)
            if self.writer is None:  # an erasure may have ended before the mark was visible
                self.refresh()

    def refresh(self) -> None:
        """Read what other processes wrote to the key table. Raises KeysMoved, and as `KeyTable.load`."""
        try:
            self.table.catch_up()
        except KeystoreError:
            if digest(self.files.read(self.root / HEADER)) != self.table.facts["facts"]:
                raise KeysMoved("The keys of this vault were moved by another program. Open the vault again.") from None
            raise

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
        if core.lease is not None and core.lease.path.name in marks:
            core.notice()


def _let_go(table: KeyTable, memory: PrivateMemory, lease: Lease) -> None:
    table.forget()
    memory.clear()
    lease.release()


def batches(ids: Iterable[str], size: int = 500) -> Iterator[list[str]]:
    """Return ids in lists that fit into one SQL statement.

    Args:
        ids: ids in any order.
        size: the greatest length of a list.

    Returns:
        Sorted ids; no list for no ids.
    """
    ordered = sorted(ids)
    return (ordered[i : i + size] for i in range(0, len(ordered), size))
