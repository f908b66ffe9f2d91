"""The durable journal of erasures: the plan of each erasure, its state, and the digest of its receipt.

Invariants
- Each step is committed before the next one starts, so that a resumed erasure knows it (I5).
- The journal holds random ids, salts and digests of ciphertext, a salted commitment to the scope and its sealed
  opening. It holds no topic name.
- Of an erasure with more than `INLINE_ITEMS` items the journal holds the Merkle root; `item_list` holds the items. An
  entry from `read` then has no items, and `with_items` adds them.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from fedmem.erasure import states
from fedmem.errors import NothingMatched
from fedmem.storage.canonical import canonical_json
from fedmem.vault.backup.backup_registry import BACKUP, KIT
from fedmem.vault.store import item_list
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.store.database import ErasureRow
from fedmem.vault.store.turns import serialised
from fedmem.vault.vault import Vault

INLINE_ITEMS = 256  # more items would make journal and receipt large
WITHOUT_RECEIPT = (states.FAILED, states.CANCELLED)


@dataclass(frozen=True)
class JournalEntry:
    """The journal entry of one erasure.

    Attributes:
        id: random id.
        state: one of `states`.
        created: seconds since 1970.
        plan: digest of its plan.
        commitment: hex; HMAC-SHA256 of the scope under the opening.
        generation: the vault's generation before it.
        ids: random ids of everything in scope.
        items: the stored items in scope.
        residual: the part of the scope that was ever shared, and its ε.
        receipt: SHA-256 of the receipt file, "" until completed.
        blocks: the fate of blocks that had learned an erased record, by random ids: {"id", "outcome"} and, if the block
            is retrained, "successor" and "run".
        opening: hex; the sealed opening of the commitment, "" if the vault does not hold it. See `openings`.
        delivered: True after the opening reached the person.
        listed: the facts of the item list of a large erasure, as `item_list.write` returns them; else empty.
        completed: number of the ledger's event that says that it is completed; None before, and in older vaults.
    """

    id: str
    state: str
    created: float
    plan: str
    commitment: str
    generation: int
    ids: frozenset[str]
    items: tuple[StoredItem, ...]
    residual: dict[str, Any]
    receipt: str = ""
    blocks: tuple[dict[str, str], ...] = ()
    opening: str = ""
    delivered: bool = False
    listed: dict[str, Any] = field(default_factory=dict)
    completed: int | None = None

    @property
    def counts(self) -> dict[str, int]:
        """The number of items by kind."""
        if self.listed:
            return dict(self.listed["kinds"])
        return dict(sorted(Counter(kind for _, kind in {(item.id, item.kind) for item in self.items}).items()))

    @property
    def runs(self) -> frozenset[str]:
        """The ids of the runs that retrain blocks."""
        return frozenset(row["run"] for row in self.blocks if "run" in row)

    def encode(self) -> str:
        """Return the value of the journal column."""
        names = ("plan", "commitment", "generation", "residual", "receipt", "blocks", "opening", "delivered")
        facts = {name: getattr(self, name) for name in names}
        facts |= {name: value for name in ("listed", "completed") if (value := getattr(self, name)) not in ({}, None)}
        items = [] if self.listed else [item._asdict() for item in self.items]
        ids = self.ids.difference(item.id for item in self.items) if self.listed else self.ids
        return canonical_json({**facts, "ids": sorted(ids), "items": items}).decode()


def add(session: Session, entry: JournalEntry) -> None:
    """Add a new erasure, inside a transaction of the caller.

    Args:
        session: the caller's transaction; the entry is durable when it commits.
        entry: a pending entry, as `new` returns it.
    """
    session.add(ErasureRow(id=entry.id, state=entry.state, created=entry.created, journal=entry.encode()))


@serialised
def read(vault: Vault, erasure_id: str) -> JournalEntry:
    """Return the entry of one erasure.

    Args:
        vault: an open vault.
        erasure_id: id of the erasure, 32 hex digits.

    Returns:
        The entry; a large erasure's items are in a list of their own, see `with_items`.

    Raises:
        NothingMatched: there is no erasure with this id.
    """
    with vault.core.database.session() as session:
        row = session.get(ErasureRow, erasure_id)
        if row is None:
            raise NothingMatched("There is no erasure with this id. `fedmem erase status` shows all erasures.")
        return _decode(row)


def read_all(vault: Vault) -> Sequence[JournalEntry]:
    """Return all entries, oldest first.

    Args:
        vault: an open vault.
    """
    with vault.core.database.session() as session:
        rows = session.execute(select(ErasureRow).order_by(ErasureRow.created)).scalars().all()
        return [_decode(row) for row in rows]


def with_items(vault: Vault, entry: JournalEntry) -> JournalEntry:
    """Return the entry with its items and all its ids, which a large erasure keeps in a list of their own.

    Args:
        vault: the vault that holds the erasure.
        entry: its journal entry.

    Raises:
        NothingMatched, VerificationFailed: the list is missing, or was changed.
    """
    if not entry.listed or entry.items:
        return entry
    items = item_list.read(vault.core, entry.id, entry.listed["root"])
    return replace(entry, items=items, ids=entry.ids | scope_ids(items))


def item_lines(vault: Vault, erasure_id: str) -> list[bytes]:
    """Return the lines of the items of an erasure. They are the leaves of the Merkle tree of a large erasure.

    Args:
        vault: an open vault.
        erasure_id: id of the erasure, 32 hex digits.

    Returns:
        One line for each item, as `item_list.lines_of` writes it.

    Raises:
        NothingMatched: there is no such erasure, or its list is missing. VerificationFailed: the list was changed.
    """
    vault.core.prepare_read()
    return item_list.lines_of(with_items(vault, read(vault, erasure_id)).items)


def scope_ids(items: Sequence[StoredItem]) -> frozenset[str]:
    """Return the ids of the items in scope. Backups and kits are retired with every scope and belong to none.

    Args:
        items: the items of a plan or an erasure.
    """
    return frozenset(item.id for item in items if item.kind not in (BACKUP, KIT))


def last_receipt(vault: Vault) -> str:
    """Return the SHA-256 of the receipt of the erasure that was completed last; "" if there is none.

    A resumed erasure may have begun before it. So the number of the ledger's event counts, not the time.

    Args:
        vault: an open vault.

    Returns:
        64 hex digits, or "".
    """
    completed, receipt = (func.json_extract(ErasureRow.journal, f"$.{name}") for name in ("completed", "receipt"))
    query = select(completed, receipt, ErasureRow.id).where(ErasureRow.state == states.COMPLETED)
    with vault.core.database.session() as session:
        row = session.execute(query.order_by(completed.desc()).limit(1)).first()
    if row is None:
        return ""
    if row[0] is None:  # completed by an earlier fedmem, which did not keep the number
        ids = [event.payload["erasure"] for event in vault.ledger.events() if event.kind == "erased"]
        return read(vault, ids[-1]).receipt
    return str(row[1])


def move(vault: Vault, entry: JournalEntry, state: str, *, receipt: str = "") -> JournalEntry:
    """Change the state of an erasure, durably, and return the new entry.

    Args:
        vault: a vault that is open for writing.
        entry: the current entry.
        state: the next state.
        receipt: SHA-256 of the receipt file, for the state completed.

    Raises:
        UsageError: the state may not follow the current one.
        StorageError: the entry is as it was.
    """
    states.check(entry.state, state)
    opening = "" if state in WITHOUT_RECEIPT else entry.opening
    moved = replace(entry, state=state, receipt=receipt, opening=opening)
    with vault.core.database.session() as session:
        row = session.get_one(ErasureRow, entry.id)
        if state == states.COMPLETED:
            event = vault.ledger.append_in(session, "erased", {"erasure": entry.id, "ids": sorted(entry.ids)})
            moved = replace(moved, completed=event.seq)
        row.state, row.journal = state, moved.encode()
    return moved


def drop_opening(vault: Vault, entry: JournalEntry) -> None:
    """Remove the sealed opening of an entry, durably, and mark it as delivered.

    Args:
        vault: a vault that is open for writing, in a change.
        entry: the entry whose opening was delivered.
    """
    with vault.core.database.session() as session:
        row = session.get_one(ErasureRow, entry.id)
        row.journal = replace(entry, opening="", delivered=True).encode()


def new(
    erasure_id: str,
    plan: str,
    commitment: str,
    generation: int,
    ids: frozenset[str],
    items: tuple[StoredItem, ...],
    residual: dict[str, Any],
    blocks: tuple[dict[str, str], ...] = (),
    *,
    opening: str,
    listed: dict[str, Any],
) -> JournalEntry:
    """Return a pending entry.

    Args:
        erasure_id: id of the erasure, 32 hex digits.
        plan: digest of the plan, hex.
        commitment: commitment to the scope, hex, as `receipt.commit` returns it.
        generation: the vault's generation before the erasure.
        ids: ids of the items in scope.
        items: the items; left out of the entry if they are in a list of their own.
        residual: {"epsilon": number or None, "reason": text}.
        blocks: outcome of each block.
        opening: the sealed opening of the commitment, hex.
        listed: public facts of the list of items, as `item_list.write` returns them; empty for a small erasure.
    """
    facts = plan, commitment, generation, ids, items, residual
    return JournalEntry(erasure_id, states.PENDING, time.time(), *facts, blocks=blocks, opening=opening, listed=listed)


def _decode(row: ErasureRow) -> JournalEntry:
    fields = json.loads(row.journal)
    ids, items = frozenset(fields.pop("ids")), tuple(StoredItem(**item) for item in fields.pop("items"))
    blocks = tuple(fields.pop("blocks"))
    return JournalEntry(row.id, row.state, row.created, ids=ids, items=items, blocks=blocks, **fields)
