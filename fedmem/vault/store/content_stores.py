"""Content stores: each place that can hold content of a record or block lists that content and erases it.

Invariants
- Each file and table of a vault is claimed by exactly one registered store, or is known to hold no content. A vault
  with any other file or table does not open.
- Stores are erased in ascending `order`. The key table is first, because its rename is the point of no return.
- `erase` is idempotent, so that an erasure rolls forward after a crash.
- Items carry random ids and digests of ciphertext, never content.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Select, delete, func, select

from fedmem.errors import Refused
from fedmem.storage.files import storage_errors
from fedmem.vault.crypto import container
from fedmem.vault.crypto.sealed_table import epoch_name
from fedmem.vault.store.core import Core, forget_in_this_process
from fedmem.vault.store.database import BlockRow, RecordRow, RunRow
from fedmem.vault.store.leases import StaleLease, stale_readers
from fedmem.vault.store.topics import rewrite

PATIENCE = 2.0  # seconds that an erasure waits for readers to notice it


class StoredItem(NamedTuple):
    """One item that a store holds.

    Attributes:
        store: name of the store.
        id: random id of the item.
        kind: key, retention, record, block, run, checkpoint, backup or kit.
        digest: SHA-256 of its ciphertext, hex; "" if the item has no ciphertext of its own.
        salt: the first 24 bytes of its ciphertext, which are random, hex; "" if there is none.
    """

    store: str
    id: str
    kind: str
    digest: str = ""
    salt: str = ""


class ContentStore(Protocol):
    """A place that can hold content of records or blocks.

    Attributes:
        name: a name of its own, for receipts.
        order: its place in an erasure; stores are erased in ascending order.
        method: how it erases, as a receipt states it.
        claims: names of the vault's files and folders that it answers for; a table is `table:<name>`.
    """

    name: str
    order: int
    method: str
    claims: frozenset[str]

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        """Return the items of this store whose id is in `ids`.

        Args:
            ids: ids of items, 32 hex digits; unknown ones are ignored.
        """

    def erase(self, ids: frozenset[str]) -> None:
        """Erase the items with these ids. An item that is already erased is ignored.

        Args:
            ids: ids of items, 32 hex digits; unknown ones are ignored.

        Raises:
            StorageError, KeystoreError: an item may still exist; calling it again continues.
        """

    def scan(self, ids: frozenset[str]) -> list[str]:
        """Return one sentence for each item of `ids` that still exists, without content; empty if none does.

        Args:
            ids: ids of items, 32 hex digits; unknown ones are ignored.
        """


class KeyTableStore:
    """The data keys, run keys and retention rules in the key table."""

    name, order = "key-table", 0
    method = "crypto-erased: table rewritten without the rows under a new epoch key, old epoch key destroyed"
    claims = frozenset({"table.fmk", "table.log"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        table = self._core.table
        rules = [StoredItem(self.name, item, "retention") for item in ids & table.facts["retention"].keys()]
        return sorted([*(StoredItem(self.name, item, "key") for item in ids & table.keys.keys()), *rules])

    def erase(self, ids: frozenset[str]) -> None:
        if self.enumerate(ids):
            rewrite(self._core.table, without=ids, rotate=True, erasure=True)
        self._core.table.settle()

    def scan(self, ids: frozenset[str]) -> list[str]:
        table = self._core.table
        table.load()  # the file counts, not the copy in memory
        remnants = [f"{item.kind} {item.id} is in the key table" for item in self.enumerate(ids)]
        if table.epoch > 1 and self._core.keystore.exists(epoch_name(table.epoch - 1)):
            remnants.append("the old epoch key is in the keystore")
        return remnants


class BlockFileStore:
    """The containers of blocks."""

    name, order = "block-files", 1
    method = "unlinked, folder synced; contents crypto-erased before"
    claims = frozenset({"blocks"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return [self._item(block_id) for block_id in stems_in(self._folder, ids)]

    def erase(self, ids: frozenset[str]) -> None:
        for block_id in stems_in(self._folder, ids):
            self._core.files.unlink(self._core.block_file(block_id))
        self._core.files.sync_folder(self._folder)

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"the file of block {block_id} exists" for block_id in stems_in(self._folder, ids)]

    @property
    def _folder(self) -> Path:
        return self._core.root / "blocks"

    def _item(self, block_id: str) -> StoredItem:
        return container_item(self.name, block_id, "block", self._core.files.read(self._core.block_file(block_id)))


def stems_in(folder: Path, ids: frozenset[str]) -> list[str]:
    """Return the ids that name a file in a folder, sorted. The folder is listed once.

    Args:
        folder: the folder; a missing one has no files.
        ids: names of files without their suffixes.

    Raises:
        StorageError: the folder cannot be listed.
    """
    with storage_errors(f"look into the folder {folder.name}"):
        return sorted(ids.intersection(path.stem for path in folder.iterdir())) if folder.is_dir() else []


def container_item(store: str, item: str, kind: str, data: bytes) -> StoredItem:
    """Return the item of a container file. A damaged container has no salt, and can still be erased.

    Args:
        store: name of the store.
        item: id of the item.
        kind: kind of the item, such as block.
        data: the bytes of the container's file.
    """
    try:
        salt = container.body_salt(data).hex()
    except container.ContainerCorrupt:
        salt = ""
    return StoredItem(store, item, kind, hashlib.sha256(data).hexdigest(), salt)


class DatabaseStore:
    """The rows of records (text, vector), blocks and runs."""

    name, order = "database", 2
    method = "rows deleted with secure_delete, log truncated, moved cells rebuilt; contents crypto-erased before"
    claims = frozenset({"vault.db", "vault.db-wal", "vault.db-shm", "vault.db-journal",
                        "table:records", "table:blocks", "table:runs"})  # fmt: skip
    _tables = (("record", RecordRow), ("block", BlockRow), ("run", RunRow))

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        items = []
        with self._core.database.session() as session:
            for kind, table in self._tables:
                rows = session.execute(select(table.id, table.sealed).where(table.id.in_(_all_of(ids))))
                items += [self._item(kind, item, sealed) for item, sealed in rows]
        return sorted(items)

    def erase(self, ids: frozenset[str]) -> None:
        with self._core.database.session() as session:
            for _, table in self._tables:
                session.execute(
                    delete(table).where(table.id.in_(_all_of(ids))).execution_options(synchronize_session=False)
                )

    def scan(self, ids: frozenset[str]) -> list[str]:
        with self._core.database.session() as session:
            existing = [
                (kind, item)
                for kind, table in self._tables
                for item in session.execute(select(table.id).where(table.id.in_(_all_of(ids)))).scalars()
            ]
        return [f"the row of {kind} {item} exists" for kind, item in sorted(existing)]

    def _item(self, kind: str, item: str, sealed: bytes) -> StoredItem:
        salt = sealed[: container.SALT_BYTES].hex()
        return StoredItem(self.name, item, kind, hashlib.sha256(sealed).hexdigest(), salt)


def _all_of(ids: frozenset[str]) -> Select[Any]:
    """Return the subquery of all `ids`: one parameter, whatever their number, and a look-up by the index."""
    return select(func.json_each(json.dumps(sorted(ids))).table_valued("value").c.value)


class ReaderStore:
    """The memory of every program that opened the vault: this one, a server, another app.

    Keys, rows of blocks, vectors and caches of answers are overwritten. Other openings of this process are told; other
    processes notice by themselves.
    """

    name, order = "readers", 3
    method = "overwritten in this process; given up by each other reader at its next fetch, or with its process"
    claims = frozenset({"leases"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return []  # the vault cannot list a reader's memory; `scan` reports that it may hold something

    def erase(self, ids: frozenset[str]) -> None:
        self._core.forget_content()
        deadline = time.monotonic() + PATIENCE
        while (readers := self._stale_readers()) and time.monotonic() < deadline:
            forget_in_this_process({reader.mark for reader in readers})
            time.sleep(0.02)

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [
            f"process {reader.process} opened the vault before the erasure and still has it open"
            for reader in self._stale_readers()
        ]

    def _stale_readers(self) -> list[StaleLease]:
        return stale_readers(self._core.root / "leases", self._core.table.generation, self._core.lease)


# These hold random ids, chain digests, zeros and public facts only. The content of the two ledgers and of lists of
# erased items is sealed and has no topic.
NO_CONTENT = frozenset({"vault.json", "device.pub", "lock", "lock.next", "receipts", "egress.log", "reserve",
                        "removing", "table:events", "table:erasures", "table:revision"})  # fmt: skip


def valid_store(store: ContentStore, others: Iterable[ContentStore]) -> ContentStore:
    """Return the store if it keeps the contract of `ContentStore`.

    Args:
        store: the store to register.
        others: the stores that are registered already.

    Raises:
        Refused: it lacks a method or an attribute, or has the name of one of the `others`.
    """
    has_methods = all(callable(getattr(store, method, None)) for method in ("enumerate", "erase", "scan"))
    has_texts = all(
        isinstance(getattr(store, attribute, None), str) and getattr(store, attribute)
        for attribute in ("name", "method")
    )
    if not has_methods or not has_texts or not isinstance(getattr(store, "order", None), int):
        raise Refused(
            "A content store needs a name, an order, a method, and enumerate, erase and scan: its content could "
            "not be erased without them. Add them before it holds anything."
        )
    if store.name in {other.name for other in others} or not isinstance(getattr(store, "claims", None), frozenset):
        raise Refused("A content store needs a name of its own, and a frozen set of the files that it claims.")
    return store


def unclaimed_names(stores: Iterable[ContentStore], present: Iterable[str]) -> list[str]:
    """Return the names that no store claims, sorted.

    Args:
        stores: the registered stores.
        present: names of files, and of tables as `table:<name>`.
    """
    claimed = NO_CONTENT.union(*(store.claims for store in stores))
    return sorted(set(present) - claimed)


def check_claims(core: Core, stores: Iterable[ContentStore]) -> None:
    """Check that each file and table of a vault is claimed by a store, or known to hold no content.

    Args:
        core: the open vault.
        stores: its registered stores.

    Raises:
        Refused: a file or table is not.
    """
    present = [path.name for path in core.root.iterdir() if not path.name.endswith(".tmp")]
    unclaimed = unclaimed_names(stores, [*present, *(f"table:{name}" for name in core.database.tables())])
    if unclaimed:
        raise Refused(
            f"The vault holds {len(unclaimed)} file(s) or table(s) that no content store answers for, so nothing "
            "could be erased with certainty. Move foreign files out of its folder."
        )


BUILT_IN: tuple[Callable[[Core], ContentStore], ...] = (KeyTableStore, BlockFileStore, DatabaseStore, ReaderStore)
