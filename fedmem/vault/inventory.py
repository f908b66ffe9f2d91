"""What a vault holds, table against database, and how a crash is cleared up at opening.

Invariants
- Keys without items are dropped: they were made for a write that was never acknowledged.
- Items without keys belong to an unfinished erasure, or the vault does not open.
- Clearing up is idempotent: a crash in it is cleared up the same way (I7).
"""

from sqlalchemy import select

from fedmem.errors import VerificationFailed
from fedmem.vault.core import Core
from fedmem.vault.database import BlockRow, ErasureRow, RecordRow, RunRow
from fedmem.vault.records import Records
from fedmem.vault.runs import Runs
from fedmem.vault.topics import ALL, FACTS, rewrite

UNFINISHED = ("pending", "in_progress", "partial")


class Inventory:
    """The ids of an open vault."""

    def __init__(self, core: Core, runs: Runs) -> None:
        self._core = core
        self._runs = runs

    def recover(self) -> None:
        """Finish or undo what a crash or a failed write left. Raises VerificationFailed where nothing explains it."""
        for folder in (self._core.root, self._core.root / "blocks", self._core.root / "receipts"):
            self._core.files.sweep(folder)
        self._core.table.settle()
        self._runs.recover()
        self._reconcile()
        self._core.unsettled = False

    def index(self, records: Records) -> None:
        """Make the index of topics in a vault of an earlier version, by opening every item once."""
        table, found = self._core.table, dict[str, list[str]]()
        items = [(record.topic, record.id) for record in records.select(ALL)]
        for run in self._runs.get(table.keys):
            items += [(run.topic, item) for item in (run.id, run.key_id, run.block_id) if item in table.keys]
        for topic, item in items:
            if topic is not None:
                found.setdefault(topic, []).append(item)
        table.rewrite(facts={**FACTS, **table.facts, "topics": found})

    def unfinished_erasures(self) -> list[str]:
        """Ids of erasures that have not ended, oldest first."""
        with self._core.database.session() as session:
            query = select(ErasureRow.id).where(ErasureRow.state.in_(UNFINISHED)).order_by(ErasureRow.created)
            return list(session.execute(query).scalars())

    def _reconcile(self) -> None:
        used, keyed = self._ids_in_database()
        table = self._core.table
        orphans = table.keys.keys() - used - {table.facts["ledger"]}
        if keyed - table.keys.keys() and not self.unfinished_erasures():
            raise VerificationFailed(
                "The key table is older than the database. Restore table and database from one backup."
            )
        if orphans:
            rewrite(table, without=orphans)
        for path in (self._core.root / "blocks").iterdir():
            if path.stem not in used:
                self._core.files.unlink(path)

    def _ids_in_database(self) -> tuple[set[str], set[str]]:
        """(ids that may have a key, ids that must have one)."""
        with self._core.database.session() as session:
            tables = (RecordRow, BlockRow, RunRow)
            keyed = {item for table in tables for item in session.execute(select(table.id)).scalars()}
            run_keys = set(session.execute(select(RunRow.key_id)).scalars())
        return keyed | run_keys, keyed
