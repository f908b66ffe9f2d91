"""The last acknowledged change, noted in the keystore, so that an older database or a missing log is noticed.

Invariants
- The note is written after key table and database are durable, and before the change is reported. So it is never
  ahead of the disk, and every change that it names was acknowledged.
- A table with a later serial than the note was written by an interrupted change. Keys without items then belong to
  items that were never acknowledged. Otherwise they belong to items that were lost.
- A vault of an earlier fedmem has no note; the first change writes it.

    check(table, items_of(database), read_note(keystore))
"""

import contextlib
import struct
from dataclasses import dataclass

from sqlalchemy import func, select

from fedmem.errors import FedmemError
from fedmem.vault.crypto import container
from fedmem.vault.crypto.key_table import CHANGE, CHANGE_NOTE, KeyTable, RolledBack
from fedmem.vault.crypto.keystore import Keystore
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import SEE_CHECK, BlockRow, Database, RecordRow, RunRow

_SERIAL = struct.Struct(">Q")


@dataclass(frozen=True)
class Acknowledged:
    """The state after the last acknowledged change: the table's serial and the database's revision."""

    serial: int
    revision: int


@dataclass(frozen=True)
class Items:
    """The ids of the items in a database at one revision.

    Attributes:
        keyed: ids that must have a key in the table: records, runs, visible blocks.
        others: ids that may have a key: run keys, blocks that are being sealed.
        revision: the database's revision.
    """

    keyed: frozenset[str]
    others: frozenset[str]
    revision: int


def read_note(keystore: Keystore) -> Acknowledged | None:
    """Return the keystore's note of the last acknowledged change; None if there is no complete note.

    Args:
        keystore: the keystore of the vault; a bare one is enough.
    """
    value = keystore.noted(CHANGE) or b""
    return Acknowledged(*CHANGE_NOTE.unpack(value)) if len(value) == CHANGE_NOTE.size else None


def state(core: Core) -> Acknowledged:
    """Return the present state of an open vault.

    Args:
        core: an open vault.
    """
    return Acknowledged(core.table.serial, core.database.revision())


def sealed_serial(core: Core) -> bytes:
    """Return the serial of the key table as a sealed cell for the database.

    Guarantees
        The cell is sealed under the ledger's key and bound to the vault. An older cell opens too: `check` notices an
        older database.

    Args:
        core: an open vault.
    """
    table = core.table
    return core.seal("table-serial", "", table.keys[table.facts["ledger"]], _SERIAL.pack(table.serial))


def check_serial(core: Core) -> None:
    """Check that the key table is not older than the database.

    Args:
        core: an open vault.

    Raises:
        RolledBack: its log was cut, or an older table was put back. VerificationFailed: the stored serial was changed.
    """
    sealed, table = core.database.table_serial(), core.table
    if sealed is None:
        return
    key = table.keys[table.facts["ledger"]]
    (serial,) = _SERIAL.unpack(container.open_cell(key, sealed, identity=core.identity("table-serial", "")))
    if table.serial < serial:
        table.catch_up()  # a writer may have changed both since the table was read
    if table.serial < serial:
        raise RolledBack(f"The key table lacks its last {serial - table.serial} change(s). {SEE_CHECK}")


def acknowledge(core: Core) -> None:
    """Note the current state in the keystore, after a change.

    A failure of the keystore is ignored: the note is then written after the next change.

    Args:
        core: a vault that is open for writing, after a durable change.
    """
    with contextlib.suppress(FedmemError):
        current = state(core)
        if read_note(core.keystore) != current:
            core.keystore.note(CHANGE, CHANGE_NOTE.pack(current.serial, current.revision))


def items_of(database: Database) -> Items:
    """Return the ids of all records, blocks and runs. The revision is read last.

    Args:
        database: the open database.
    """
    with database.session() as session:
        # One text is read ten times as fast as a row for each record.
        records = (session.execute(select(func.group_concat(RecordRow.id))).scalar_one() or "").split(",")
        runs = session.execute(select(RunRow.id, RunRow.key_id)).all()
        blocks = session.execute(select(BlockRow.id, BlockRow.state)).all()
    visible = {block for block, state in blocks if state == "live"}
    keyed = frozenset([*filter(None, records), *(run for run, _ in runs), *visible])
    others = frozenset([*(key for _, key in runs), *(block for block, _ in blocks)]) - keyed
    return Items(keyed, others, database.revision())


def keys_without_items(table: KeyTable, items: Items) -> frozenset[str]:
    """Return the ids of the data keys that belong to no item of the database.

    Args:
        table: the key table.
        items: the ids in the database.

    Returns:
        Data keys of records, runs or blocks that an interrupted change never finished, or that were lost.
    """
    return frozenset(table.keys.keys() - items.keyed - items.others - {table.facts["ledger"]})


def check(table: KeyTable, items: Items, note: Acknowledged | None) -> None:
    """Check that the database holds every acknowledged change.

    Args:
        table: the key table, read before `items`.
        items: the ids in the database.
        note: the keystore's note, read before `table`, so that a change in between is not taken for a loss.

    Raises:
        RolledBack: the database is older than the note, or lacks items whose keys were acknowledged.
    """
    if note is None:
        return
    is_unchanged = table.serial <= note.serial and items.revision <= note.revision
    if items.revision < note.revision or (is_unchanged and keys_without_items(table, items)):
        raise RolledBack(
            "An older or another database was put back, or its log vault.db-wal is missing: it lacks "
            f"later changes. {SEE_CHECK}"
        )
