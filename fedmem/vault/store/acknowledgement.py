"""The keystore's note of the last acknowledged change: an older database, or a missing log, is noticed.

Invariants
- The note is written when key table and database are durable, before the change is reported. So it is never ahead of
  the disk, and what it names was acknowledged.
- A table with a later serial than the note was written by a change that was cut: keys without items are then keys of
  items that nobody was told of. Otherwise they are the keys of items that were lost.
- A vault of an earlier fedmem has no note; the first change makes it.

    check(table, items_of(database), noted(keystore))
"""

import contextlib
import struct
from dataclasses import dataclass

from sqlalchemy import select

from fedmem.errors import FedmemError
from fedmem.vault.crypto.key_table import KeyTable, RolledBack
from fedmem.vault.crypto.keystore import Keystore
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import SEE_CHECK, BlockRow, Database, RecordRow, RunRow

NOTE = "database"
_PACKED = struct.Struct(">QQ")


@dataclass(frozen=True)
class Acknowledged:
    """The state that the last acknowledged change left: the table's serial and the database's revision."""

    serial: int
    revision: int


@dataclass(frozen=True)
class Items:
    """Ids of items in a database at one revision.

    Attributes:
        keyed: ids that must have a key in the table: records, runs, blocks that are visible.
        others: ids that may have one: run keys, blocks that are being sealed.
    """

    keyed: frozenset[str]
    others: frozenset[str]
    revision: int


def noted(keystore: Keystore) -> Acknowledged | None:
    """Return the keystore's note; None where there is none that is whole."""
    value = keystore.noted(NOTE) or b""
    return Acknowledged(*_PACKED.unpack(value)) if len(value) == _PACKED.size else None


def acknowledge(core: Core) -> None:
    """Note the state after a change. A keystore that cannot do so now does so after the next change."""
    with contextlib.suppress(FedmemError):
        now = Acknowledged(core.table.serial, core.database.revision())
        if noted(core.keystore) != now:
            core.keystore.note(NOTE, _PACKED.pack(now.serial, now.revision))


def items_of(database: Database) -> Items:
    """Return the ids of all records, blocks and runs; the revision is read last."""
    with database.session() as session:
        records = session.execute(select(RecordRow.id)).scalars().all()
        runs = session.execute(select(RunRow.id, RunRow.key_id)).all()
        blocks = session.execute(select(BlockRow.id, BlockRow.state)).all()
    visible = {block for block, state in blocks if state == "live"}
    keyed = frozenset([*records, *(run for run, _ in runs), *visible])
    others = frozenset([*(key for _, key in runs), *(block for block, _ in blocks)]) - keyed
    return Items(keyed, others, database.revision())


def keys_without_items(table: KeyTable, items: Items) -> frozenset[str]:
    """Return the ids of data keys that belong to no item of the database."""
    return frozenset(table.keys.keys() - items.keyed - items.others - {table.facts["ledger"]})


def check(table: KeyTable, items: Items, note: Acknowledged | None) -> None:
    """Check that the database holds every change that was acknowledged.

    Args:
        note: read before `table`, and `table` before `items`: what a writer adds meanwhile is then no loss.

    Raises:
        RolledBack: the database is older than the note, or lacks items whose keys were acknowledged.
    """
    if note is None:
        return
    unchanged = table.serial <= note.serial and items.revision <= note.revision
    if items.revision < note.revision or (unchanged and keys_without_items(table, items)):
        raise RolledBack(
            "An older or another database was put back, or its log vault.db-wal is missing: what was stored since is "
            f"not in it. {SEE_CHECK}"
        )
