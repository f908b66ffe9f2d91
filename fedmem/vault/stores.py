"""Content stores: every place that can hold something of a record or block says what it holds and can let go of it.

Invariants
- Each file and table of a vault is claimed by exactly one registered store or is known to hold no content;
  a vault with anything else in it does not open.
- Stores are erased in ascending `order`: the key table first, because its rename is the point of no return.
- `erase` is idempotent, so that an erasure rolls forward after a crash.
- Items carry random ids and digests of ciphertext, never content.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy import delete, select

from fedmem.vault import container
from fedmem.vault.core import Core
from fedmem.vault.database import BlockRow, RecordRow, RunRow
from fedmem.vault.keytable import epoch_name


@dataclass(frozen=True, order=True)
class Item:
    """One thing that a store holds.

    Attributes:
        kind: key, record, block or run.
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

    def enumerate(self, ids: frozenset[str]) -> list[Item]:
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

    def enumerate(self, ids: frozenset[str]) -> list[Item]:
        return [Item(self.name, item, "key") for item in sorted(ids & self._core.table.keys.keys())]

    def erase(self, ids: frozenset[str]) -> None:
        if ids & self._core.table.keys.keys():
            self._core.table.rewrite(without=ids, rotate=True, erasure=True)
        self._core.table.settle()

    def scan(self, ids: frozenset[str]) -> list[str]:
        table = self._core.table
        table.load()  # what counts is the file
        found = [f"key {item} is in the key table" for item in sorted(ids & table.keys.keys())]
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

    def enumerate(self, ids: frozenset[str]) -> list[Item]:
        return [self._item(path.stem) for path in sorted(self._folder.glob("*.fmb")) if path.stem in ids]

    def erase(self, ids: frozenset[str]) -> None:
        paths = [self._core.block_file(item) for item in sorted(ids)]
        found = [path for path in paths if path.exists()]
        for path in found:
            self._core.files.unlink(path)
        self._core.files.sync_folder(self._folder)

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"the file of block {path.stem} exists" for path in self._folder.glob("*") if path.stem in ids]

    @property
    def _folder(self) -> Path:
        return self._core.root / "blocks"

    def _item(self, block_id: str) -> Item:
        data = self._core.files.read(self._core.block_file(block_id))
        try:
            salt = container.body_salt(data).hex()
        except container.ContainerCorrupt:
            salt = ""  # a damaged block must still be erasable
        return Item(self.name, block_id, "block", hashlib.sha256(data).hexdigest(), salt)


class DatabaseStore:
    """Rows of records (text, vector), blocks and runs."""

    name, order = "database", 2
    method = "rows deleted with secure_delete, write-ahead log truncated; contents crypto-erased before"
    claims = frozenset({"vault.db", "vault.db-wal", "vault.db-shm", "vault.db-journal",
                        "table:records", "table:blocks", "table:runs"})  # fmt: skip
    _tables = (("record", RecordRow), ("block", BlockRow), ("run", RunRow))

    def __init__(self, core: Core) -> None:
        self._core = core

    def enumerate(self, ids: frozenset[str]) -> list[Item]:
        items = []
        with self._core.database.session() as session:
            for kind, table in self._tables:
                rows = session.execute(select(table.id, table.sealed))
                items += [self._item(kind, item, sealed) for item, sealed in rows if item in ids]
        return sorted(items)

    def erase(self, ids: frozenset[str]) -> None:
        with self._core.database.session() as session:
            for _, table in self._tables:
                for batch in _batches(ids):
                    session.execute(delete(table).where(table.id.in_(batch)))

    def scan(self, ids: frozenset[str]) -> list[str]:
        return [f"the row of {item.kind} {item.id} exists" for item in self.enumerate(ids)]

    def _item(self, kind: str, item: str, sealed: bytes) -> Item:
        salt = sealed[: container.SALT_BYTES].hex()
        return Item(self.name, item, kind, hashlib.sha256(sealed).hexdigest(), salt)


# Hold random ids, chain digests and public facts only; the ledger's payloads are sealed and name no topic.
NO_CONTENT = frozenset({"vault.json", "device.pub", "lock", "receipts", "table:events", "table:erasures"})


def unclaimed(stores: Iterable[ContentStore], present: Iterable[str]) -> list[str]:
    """What of `present` (file names, and tables as `table:<name>`) no store answers for."""
    claimed = NO_CONTENT.union(*(store.claims for store in stores))
    return sorted(set(present) - claimed)


def _batches(ids: frozenset[str], size: int = 500) -> Iterable[list[str]]:
    ordered = sorted(ids)
    return (ordered[i : i + size] for i in range(0, len(ordered), size))


BUILT_IN: tuple[Callable[[Core], ContentStore], ...] = (KeyTableStore, BlockFileStore, DatabaseStore)
