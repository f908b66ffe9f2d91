"""The durable journal of erasures: what was begun, how far it came, and where its receipt lies.

Invariants
- Each step is committed before the next one starts, so that a crash finds it (I5).
- It holds random ids, salts and digests of ciphertext, and a salted commitment to the scope: no topic name.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select

from fedmem.canonical import canonical_json
from fedmem.erasure import states
from fedmem.errors import NothingMatched
from fedmem.vault.database import ErasureRow
from fedmem.vault.stores import Item
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class Entry:
    """One erasure.

    Attributes:
        plan: digest of its plan.
        commitment: hex; HMAC-SHA256 of the scope under the opening.
        generation: the vault's generation before it.
        residual: what of the scope was ever shared, and its ε.
        receipt: SHA-256 of the receipt file, "" until completed.
    """

    id: str
    state: str
    created: float
    plan: str
    commitment: str
    generation: int
    ids: frozenset[str]
    items: tuple[Item, ...]
    residual: dict[str, Any]
    receipt: str = ""

    def encode(self) -> str:
        """The journal column."""
        facts = {name: getattr(self, name) for name in ("plan", "commitment", "generation", "residual", "receipt")}
        items = [asdict(item) for item in self.items]
        return canonical_json({**facts, "ids": sorted(self.ids), "items": items}).decode()


def add(vault: Vault, entry: Entry) -> None:
    """Write a new erasure."""
    with vault.core.database.session() as session:
        row = ErasureRow(id=entry.id, state=entry.state, created=entry.created, journal=entry.encode())
        session.add(row)


def read(vault: Vault, erasure_id: str) -> Entry:
    """One erasure. Raises NothingMatched."""
    found = [entry for entry in read_all(vault) if entry.id == erasure_id]
    if not found:
        raise NothingMatched("There is no erasure with this id. `fedmem erase status` shows those there are.")
    return found[0]


def read_all(vault: Vault) -> Sequence[Entry]:
    """All erasures, oldest first."""
    with vault.core.database.session() as session:
        rows = session.execute(select(ErasureRow).order_by(ErasureRow.created)).scalars().all()
        return [_decode(row) for row in rows]


def move(vault: Vault, entry: Entry, state: str, *, receipt: str = "") -> Entry:
    """Take an erasure to its next state, durably. Raises UsageError where that may not follow."""
    states.check(entry.state, state)
    moved = Entry(**{**entry.__dict__, "state": state, "receipt": receipt})
    with vault.core.database.session() as session:
        row = session.get_one(ErasureRow, entry.id)
        row.state, row.journal = state, moved.encode()
        if state == states.COMPLETED:
            vault.ledger.append_in(session, "erased", {"erasure": entry.id, "ids": sorted(entry.ids)})
    return moved


def new(erasure_id: str, plan: str, commitment: str, generation: int, ids: frozenset[str], items: tuple[Item, ...],
        residual: dict[str, Any]) -> Entry:  # fmt: skip
    """A pending erasure."""
    return Entry(erasure_id, states.PENDING, time.time(), plan, commitment, generation, ids, items, residual)


def _decode(row: ErasureRow) -> Entry:
    known = json.loads(row.journal)
    ids, items = frozenset(known.pop("ids")), tuple(Item(**item) for item in known.pop("items"))
    return Entry(row.id, row.state, row.created, ids=ids, items=items, **known)
