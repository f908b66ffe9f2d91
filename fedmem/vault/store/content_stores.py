"""Content stores: every place that can hold something of a record or block says what it holds and can let go of it.

Invariants
- Each file and table of a vault is claimed by exactly one registered store or is known to hold no content;
  a vault with anything else in it does not open.
- Stores are erased in ascending `order`: the key table first, because its rename is the point of no return.
- `erase` is idempotent, so that an erasure rolls forward after a crash.
- Items carry random ids and digests of ciphertext, never content.
"""

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy import delete, select

from fedmem.errors import Refused
from fedmem.vault.crypto import container
from fedmem.vault.crypto.key_table import epoch_name
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import BlockRow, RecordRow, RunRow
from fedmem.vault.store.leases import older
from fedmem.vault.store.topics import rewrite

PATIENCE = 2.0  # seconds that an erasure gives a reader to notice


@dataclass(frozen=True, order=True)
class StoredItem:
    """One thing that a store holds.

    Attributes:
        kind: key, retention, record, block, run or checkpoint.
        digest: SHA-256 of its ciphertext, hex; "" where the store has none of its own.
        salt: the 24 random bytes its ciphertext begins with, hex; "" where there is none.
    """

    store: str
    id: str
    kind: str
    digest: str = ""
    salt: str = ""


class ContentStore(Protocol):
    """A place that can hold content of records or blocks."""

    name: str
    order: int
    method: str
    claims: frozenset[str]

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        """What this store holds of `ids`."""

    def erase(self, ids: frozenset[str]) -> None:
        """Let go of `ids`; what is gone already is fine."""

    def scan(self, ids: frozenset[str]) -> list[str]:
        """What is still here of `ids`, as sentences without content; empty is clean."""


class KeyTableStore:
    """Data keys and run keys."""

    name, order = "key-table", 0
    method = "crypto-erased: table rewritten without the rows under a new epoch key, old epoch key destroyed"
    claims = frozenset({"table.fmk"})

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
        table.load()  # what counts is the file
        found = [f"{item.kind} {item.id} is in the key table" for item in self.enumerate(ids)]
        if table.epoch > 1 and self._core.keystore.exists(epoch_name(table.epoch - 1)):
            found.append("the old epoch key is in the keystore")
        return found


class BlockFileStore:
    """Containers of blocks."""

    name, order = "block-files", 1
    method = "unlinked, folder synced; contents crypto-erased before"
    claims = frozenset({"blocks"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return [self._item(item) for item in sorted(ids) if self._core.block_file(item).exists()]

    def erase(self, ids: frozenset[str]) -> None:
        paths = [self._core.block_file(item) for item in sorted(ids)]
        found = [path for path in paths if path.exists()]
        for path in found:
            self._core.files.unlink(path)
        self._core.files.sync_folder(self._folder)

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"the file of block {item} exists" for item in sorted(ids) if self._core.block_file(item).exists()]

    @property
    def _folder(self) -> Path:
        return self._core.root / "blocks"

    def _item(self, block_id: str) -> StoredItem:
        return container_item(self.name, block_id, "block", self._core.files.read(self._core.block_file(block_id)))


def container_item(store: str, item: str, kind: str, data: bytes) -> StoredItem:
    """The item that a container file is; a damaged one has no salt, and must still be erasable."""
    try:
        salt = container.body_salt(data).hex()
    except container.ContainerCorrupt:
        salt = ""
    return StoredItem(store, item, kind, hashlib.sha256(data).hexdigest(), salt)


class DatabaseStore:
    """Rows of records (text, vector), blocks and runs."""

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
                for batch in batches(ids):
                    rows = session.execute(select(table.id, table.sealed).where(table.id.in_(batch)))
                    items += [self._item(kind, item, sealed) for item, sealed in rows]
        return sorted(items)

    def erase(self, ids: frozenset[str]) -> None:
        with self._core.database.session() as session:
            for _, table in self._tables:
                for batch in batches(ids):
                    session.execute(delete(table).where(table.id.in_(batch)))

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"the row of {item.kind} {item.id} exists" for item in self.enumerate(ids)]

    def _item(self, kind: str, item: str, sealed: bytes) -> StoredItem:
        salt = sealed[: container.SALT_BYTES].hex()
        return StoredItem(self.name, item, kind, hashlib.sha256(sealed).hexdigest(), salt)


class ReaderStore:
    """Memory of other processes that opened the vault for reading: a server, another app."""

    name, order = "readers", 3
    method = "given up by each reader at its next fetch, or with its process"
    claims = frozenset({"leases"})

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return []  # what a reader fetched is its own; that it may hold something is said by `scan`

    def erase(self, ids: frozenset[str]) -> None:
        limit = time.monotonic() + PATIENCE
        while self.scan(ids) and time.monotonic() < limit:
            time.sleep(0.02)

    def scan(self, ids: frozenset[str]) -> list[str]:
        found = older(self._core.root / "leases", self._core.table.generation)
        return [f"process {process} opened the vault before the erasure and has not let go" for process in found]


# Hold random ids, chain digests and public facts only; what the two ledgers hold is sealed and names no topic.
NO_CONTENT = frozenset({"vault.json", "device.pub", "lock", "receipts", "egress.log",
                        "table:events", "table:erasures", "table:revision"})  # fmt: skip


def checked(store: ContentStore, known: Iterable[ContentStore]) -> ContentStore:
    """The store, if an erasure can reach what it holds. Raises Refused where it does not keep the contract."""
    works = all(callable(getattr(store, verb, None)) for verb in ("enumerate", "erase", "scan"))
    named = all(isinstance(getattr(store, fact, None), str) and getattr(store, fact) for fact in ("name", "method"))
    if not works or not named or not isinstance(getattr(store, "order", None), int):
        raise Refused(
            "A content store needs a name, an order, a method, and enumerate, erase and scan: what it holds could "
            "not be erased without them. Add them before it holds anything."
        )
    if store.name in {other.name for other in known} or not isinstance(getattr(store, "claims", None), frozenset):
        raise Refused("A content store needs a name of its own, and a frozen set of the files that it claims.")
    return store


def unclaimed(stores: Iterable[ContentStore], present: Iterable[str]) -> list[str]:
    """What of `present` (file names, and tables as `table:<name>`) no store answers for."""
    claimed = NO_CONTENT.union(*(store.claims for store in stores))
    return sorted(set(present) - claimed)


BUILT_IN: tuple[Callable[[Core], ContentStore], ...] = (KeyTableStore, BlockFileStore, DatabaseStore, ReaderStore)
