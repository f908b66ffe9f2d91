"""The durable journal of erasures: the plan of each erasure, its state, and the digest of its receipt.

Invariants
- Each step is committed before the next one starts, so that a resumed erasure knows it (I5).
- The journal holds random ids, salts and digests of ciphertext, a salted commitment to the scope and its sealed
  opening. It holds no topic name.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from fedmem.erasure import states
from fedmem.errors import NothingMatched
from fedmem.storage.canonical import canonical_json
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.store.core import serialised
from fedmem.vault.store.database import ErasureRow
from fedmem.vault.vault import Vault

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

    @property
    def runs(self) -> frozenset[str]:
        """The ids of the runs that retrain blocks."""
        return frozenset(row["run"] for row in self.blocks if "run" in row)

    def encode(self) -> str:
        """Return the value of the journal column."""
        names = ("plan", "commitment", "generation", "residual", "receipt", "blocks", "opening", "delivered")
        facts = {name: getattr(self, name) for name in names}
        items = [asdict(item) for item in self.items]
        return canonical_json({**facts, "ids": sorted(self.ids), "items": items}).decode()


def add(session: Session, entry: JournalEntry) -> None:
    """Add a new erasure, inside a transaction of the caller."""
    session.add(ErasureRow(id=entry.id, state=entry.state, created=entry.created, journal=entry.encode()))


@serialised
def read(vault: Vault, erasure_id: str) -> JournalEntry:
    """Return the entry of one erasure. Raises NothingMatched for an unknown id."""
    with vault.core.database.session() as session:
        row = session.get(ErasureRow, erasure_id)
        if row is None:
            raise NothingMatched("There is no erasure with this id. `fedmem erase status` shows all erasures.")
        return _decode(row)


def read_all(vault: Vault) -> Sequence[JournalEntry]:
    """Return all entries, oldest first."""
    with vault.core.database.session() as session:
        rows = session.execute(select(ErasureRow).order_by(ErasureRow.created)).scalars().all()
        return [_decode(row) for row in rows]


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
        row.state, row.journal = state, moved.encode()
        if state == states.COMPLETED:
            vault.ledger.append_in(session, "erased", {"erasure": entry.id, "ids": sorted(entry.ids)})
    return moved


def drop_opening(vault: Vault, entry: JournalEntry) -> None:
    """Remove the sealed opening of an entry, durably, and mark it as delivered."""
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
) -> JournalEntry:
    """Return a pending entry. `opening` is sealed, in hex."""
    facts = plan, commitment, generation, ids, items, residual
    return JournalEntry(erasure_id, states.PENDING, time.time(), *facts, blocks=blocks, opening=opening)


def _decode(row: ErasureRow) -> JournalEntry:
    fields = json.loads(row.journal)
    ids, items = frozenset(fields.pop("ids")), tuple(StoredItem(**item) for item in fields.pop("items"))
    blocks = tuple(fields.pop("blocks"))
    return JournalEntry(row.id, row.state, row.created, ids=ids, items=items, blocks=blocks, **fields)
