"""Key table against database: an unexplained difference is refused, an interrupted change is finished or undone.

Invariants
- Nothing is repaired by dropping. Keys without items are cleared only where an unacknowledged change explains them
  (`acknowledgement`). Items without keys are allowed only while an erasure is unfinished. Otherwise the vault does
  not open, and nothing is changed.
- Recovery is idempotent: a crash in it is recovered from in the same way (I7).
"""

import json
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import InstrumentedAttribute

from fedmem.errors import VerificationFailed
from fedmem.vault.backup import backup_registry
from fedmem.vault.crypto.key_table import KeyTable
from fedmem.vault.store import acknowledgement, item_list
from fedmem.vault.store.acknowledgement import Items, items_of, keys_without_items
from fedmem.vault.store.core import Core
from fedmem.vault.store.database import SEE_CHECK, BlockRow, Database, ErasureRow, EventRow, RecordRow
from fedmem.vault.store.records import Records
from fedmem.vault.store.runs import Runs
from fedmem.vault.store.topics import ALL, FACTS, rewrite

UNFINISHED = ("pending", "in_progress", "partial")


class Inventory:
    """The ids of an open vault, and their recovery."""

    def __init__(self, core: Core, runs: Runs) -> None:
        self._core = core
        self._runs = runs

    def catch_up(self) -> None:
        """Read what other processes wrote, and finish or undo the rest of a change that failed or was killed.

        The caller holds the writer lock. Raises as `recover`.
        """
        core = self._core
        core.refresh()
        if not core.is_settled:
            core.database.overwrite_log()
        if not core.is_settled or acknowledgement.read_note(core.keystore) != acknowledgement.state(core):
            self.recover()
            acknowledgement.acknowledge(core)

    def recover(self) -> None:
        """Finish or undo the rest of a crash or a failed write.

        Raises:
            VerificationFailed: table and database differ, and no interrupted change explains it; see `acknowledgement`.
        """
        note = acknowledgement.read_note(self._core.keystore)
        self.sweep()
        self._core.table.settle()
        self._runs.recover()
        self._reconcile(note)
        backup_registry.sweep(self._core)
        self._core.is_settled = True

    def sweep(self) -> None:
        """Remove what a crash left: temporary files, and containers and lists that no row of the database names."""
        root = self._core.root
        for folder in (root, root / "blocks", root / "receipts"):
            self._core.files.sweep(folder)
        self._drop_files_without_row((root / "blocks").iterdir(), BlockRow.id)
        self._drop_files_without_row((root / "receipts").glob(f"*{item_list.SUFFIX}"), ErasureRow.id)

    def index(self, records: Records) -> None:
        """Build the index of topics in a vault of an earlier version, by opening every item once.

        Args:
            records: the records of the vault.
        """
        table, ids_of_topic = self._core.table, dict[str, list[str]]()
        items = [(record.topic, record.id) for record in records.select(ALL)]
        for run in self._runs.get(table.keys):
            items += [(run.topic, item) for item in (run.id, run.key_id, run.block_id) if item in table.keys]
        for topic, item in items:
            if topic is not None:
                ids_of_topic.setdefault(topic, []).append(item)
        table.rewrite(facts={**FACTS, **table.facts, "topics": ids_of_topic})

    def unfinished_erasures(self) -> list[str]:
        """Return the ids of unfinished erasures, oldest first."""
        return unfinished_erasures(self._core.database)

    def _reconcile(self, note: acknowledgement.Acknowledged | None) -> None:
        table, items = self._core.table, items_of(self._core.database)
        acknowledgement.check(table, items, note)
        check_keys(table, items, self._core.database)
        if orphans := keys_without_items(table, items):
            rewrite(table, without=orphans)

    def _drop_files_without_row(self, paths: Iterable[Path], column: InstrumentedAttribute[str]) -> None:
        """Remove the files whose name is no id in this column."""
        if files := list(paths):
            with self._core.database.session() as session:
                ids = set(session.execute(select(column)).scalars())
            for path in files:
                if path.stem not in ids:
                    self._core.files.unlink(path)


def unfinished_erasures(database: Database) -> list[str]:
    """Return the ids of unfinished erasures, oldest first.

    Args:
        database: the open database.
    """
    with database.session() as session:
        query = select(ErasureRow.id).where(ErasureRow.state.in_(UNFINISHED)).order_by(ErasureRow.created)
        return list(session.execute(query).scalars())


def receipts(database: Database) -> list[tuple[str, str]]:
    """Return (id, SHA-256 of the receipt in hex) of every completed erasure.

    Args:
        database: the open database.
    """
    with database.session() as session:
        rows = session.execute(select(ErasureRow.id, ErasureRow.journal).where(ErasureRow.state == "completed")).all()
    return [(erasure, str(json.loads(journal)["receipt"])) for erasure, journal in rows]


def item_roots(database: Database) -> list[tuple[str, str]]:
    """Return (id, Merkle root in hex) of every erasure that has a list of items of its own.

    Args:
        database: the open database.
    """
    root = func.json_extract(ErasureRow.journal, "$.listed.root")
    with database.session() as session:
        return [(erasure, root) for erasure, root in session.execute(select(ErasureRow.id, root)) if root]


def check_tables(database: Database) -> None:
    """Check that the database has its required tables.

    Args:
        database: the open database.

    Raises:
        VerificationFailed: the privacy ledger or another table is missing. VersionMismatch: a schema of a newer fedmem.
    """
    database.version()
    tables = database.tables()
    if EventRow.__tablename__ not in tables:
        raise VerificationFailed(
            "The vault has lost its privacy ledger, so nothing may be spent. `fedmem backup restore` brings it back."
        )
    if not {RecordRow.__tablename__, ErasureRow.__tablename__} <= tables:
        raise VerificationFailed(f"The vault's database lacks tables. {SEE_CHECK}")


def check_keys(table: KeyTable, items: Items, database: Database) -> None:
    """Check that every item has its key, unless an erasure is unfinished.

    Args:
        table: the key table.
        items: the ids in the database.
        database: the open database.

    Raises:
        VerificationFailed: a key is missing.
    """
    if items.keyed - table.keys.keys() and not unfinished_erasures(database):
        raise VerificationFailed(
            "The key table is older than the database. Restore table and database from one backup, or put the newest "
            "table back; `fedmem vault check` says what does not fit."
        )
