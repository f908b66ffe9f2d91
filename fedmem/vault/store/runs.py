"""Training runs and the blocks that they produce.

Invariants
- `begin` returns only after the sealed run key and the ledger's `spend` event are durable (I6).
- A run whose data or plan changed is never resumed: it ends as failed, stays charged, and its key is destroyed.
- The run key is destroyed, under a new epoch, before the block is visible; no stream can be drawn again.
- `finish` is whole or absent: pending row -> container -> key table (the point of no return) -> live row (I7).
- A seeded run key is refused outside simulated vaults.
- A checkpoint belongs to one open run, whose data and plan have not changed, and is destroyed with its key.
- A planned run (state `wanted`) is sealed and durable. It is charged when it begins: the next run of its topic and
  release takes its id.

The ledger names runs, blocks and records by random ids; topic, plan and data digest stay in the run's sealed cell.
"""

import hmac
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from fedmem.errors import NothingMatched, Refused, UsageError
from fedmem.storage.canonical import canonical_json
from fedmem.storage.ids import new_id
from fedmem.storage.private_memory import PrivateBuffer
from fedmem.vault.crypto import container
from fedmem.vault.store.blocks import BlockInfo, BlockStore
from fedmem.vault.store.checkpoints import Checkpoints
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import BlockRow, RunRow
from fedmem.vault.store.ledger import PLANNED, SPEND, Ledger
from fedmem.vault.store.topics import ids_of, rewrite

KEY_BYTES = 32


@dataclass(frozen=True)
class TrainingRun:
    """A training run that has been charged.

    Attributes:
        id: random id, also in the ledger.
        key: 32 bytes for the run's randomness; destroyed by `finish`.
        resumed: True if this is an interrupted run with the same data and plan.
        block_id: id of the block that the run will produce.
    """

    id: str
    key: bytes = field(repr=False)
    resumed: bool
    block_id: str


@dataclass(frozen=True)
class RunRecord:
    """The facts of a run, from its row and its sealed cell.

    Attributes:
        id, key_id, block_id: random ids of the run, its key and its block.
        state: wanted, open, finishing, finished or failed.
        topic: topic of the block.
        release: digest of the release.
        plan: the plan that the caller gave to `begin`.
        records: ids of the records that it learned from; empty if they are not known.
    """

    id: str
    key_id: str
    block_id: str
    state: str
    topic: str = field(repr=False)
    release: str
    plan: dict[str, Any] = field(repr=False)
    records: frozenset[str] = field(repr=False)

    def may_hold(self, records: Collection[str]) -> bool:
        """Return True if one of `records` took part, or may have taken part because the lineage is not known.

        A planned run has learned no record.
        """
        return self.state != PLANNED and (not self.records or not self.records.isdisjoint(records))


class Runs:
    """The training runs of an open vault."""

    def __init__(self, core: Core, ledger: Ledger, blocks: BlockStore, checkpoints: Checkpoints) -> None:
        self._core = core
        self._ledger = ledger
        self._blocks = blocks
        self._checkpoints = checkpoints

    def begin(
        self,
        topic: str,
        release: str,
        plan: Mapping[str, Any],
        data_digest: str,
        record_ids: Sequence[str],
        spend: Mapping[str, Any],
        run_key: bytes | None = None,
    ) -> TrainingRun:
        """Charge a run and return it, or resume the open run of this topic and release with equal data and plan.

        Open runs of this topic and release with other data or another plan end as failed.

        Args:
            topic: topic of the block; it is sealed.
            release: digest of the release.
            plan: the frozen settings, as JSON.
            data_digest: digest of the training data.
            record_ids: ids of the records to learn from.
            spend: facts of the cost, as JSON; the ledger keeps them for ever.
            run_key: 32 bytes from a seed, in simulated vaults only; else they are random.

        Raises:
            Refused: a seeded key in a vault that is not simulated, or a spend that names the topic.
            UsageError: the run key does not have 32 bytes.
            StorageError: nothing was charged and nothing may be trained.
        """
        self._check(topic, spend, run_key)
        facts = _facts(topic, release, plan, data_digest, record_ids)
        with self._core.writing():
            open_runs = self._open_runs(topic, release)
            for row, earlier_facts in open_runs:
                if _equal(earlier_facts, facts):
                    return TrainingRun(row.id, self._core.table.keys[row.key_id], True, row.block_id)
            return self._start(facts, spend, run_key or container.new_key(), [row for row, _ in open_runs])

    def end_changed(
        self, topic: str, release: str, plan: Mapping[str, Any], data_digest: str, record_ids: Sequence[str]
    ) -> bool:
        """End the open runs of this topic and release that have other data or another plan.

        They stay charged; their keys and checkpoints are destroyed.

        Returns:
            True if there was such a run.

        Raises:
            StorageError: a run may still be open, or keep its key until the next change of the vault.
        """
        facts = _facts(topic, release, plan, data_digest, record_ids)
        with self._core.writing():
            changed = [
                row for row, earlier_facts in self._open_runs(topic, release) if not _equal(earlier_facts, facts)
            ]
            if changed:
                self._end(changed)
        return bool(changed)

    def save(self, run: TrainingRun, step: int, data: bytes) -> None:
        """Seal `data` as the state of an open run after `step` steps. Raises NothingMatched, StorageError."""
        with self._core.writing():
            self._checkpoints.save(self._open_row(run).key_id, run.key, step, data)

    def saved(self, run: TrainingRun) -> tuple[int, PrivateBuffer] | None:
        """Return (step, data) of the last checkpoint of an open run; None if there is none. Raises NothingMatched."""
        self._core.prepare_read()
        return self._checkpoints.load(self._open_row(run).key_id, run.key)

    def plan(self, planned: Sequence[RunRecord], commit: Callable[[Session], None]) -> None:
        """Write planned runs, in one transaction with the rows that `commit` writes. Nothing is charged."""
        keys = {run.id: container.new_key() for run in planned}
        if keys:
            rewrite(self._core.table, add=keys, topics={run.id: run.topic for run in planned})
        with self._core.database.session() as session:
            for run in planned:
                facts = {"topic": run.topic, "release": run.release, "plan": run.plan, "records": []}
                sealed = self._core.seal("run", run.id, keys[run.id], canonical_json(facts))
                columns = {"id": run.id, "key_id": run.key_id, "block_id": run.block_id, "state": PLANNED}
                session.add(RunRow(**columns, created=time.time(), sealed=sealed))
            commit(session)

    def drop_planned(self, ids: Collection[str]) -> None:
        """Delete the planned runs with these ids; runs that have begun are left as they are."""
        planned = {run.id for run in self.get(ids) if run.state == PLANNED}
        if not planned:
            return
        with self._core.database.session() as session:
            for row in session.execute(select(RunRow).where(RunRow.id.in_(planned))).scalars():
                session.delete(row)
        rewrite(self._core.table, without=planned)

    def of(self, topic: str) -> list[RunRecord]:
        """Return the runs of one topic, oldest first. Raises StaleReader."""
        return self.get(ids_of(self._core.table, topic))

    def get(self, ids: Collection[str]) -> list[RunRecord]:
        """Return the runs with these ids, oldest first; other ids are left out. Raises StaleReader."""
        self._core.prepare_read()
        rows: list[RunRow] = []
        with self._core.database.session() as session:
            session.expire_on_commit = False
            for batch in batches(ids):
                rows += session.execute(select(RunRow).where(RunRow.id.in_(batch))).scalars()
        return [self._run_record(row) for row in sorted(rows, key=lambda row: row.created)
                if row.id in self._core.table.keys]  # fmt: skip

    def finish(
        self, run: TrainingRun, topic: str, release: str, rows: bytes, layers: int, width: int, d_model: int
    ) -> BlockInfo:
        """Seal `rows` as the run's block, destroy the run key, and make the block visible.

        Args:
            run: an open run.
            topic: topic of the block.
            release: digest of the release.
            rows: safetensors of the rows, [layers, 3, width, d_model].
            layers, width, d_model: shape of the rows.

        Returns:
            The new block.

        Raises:
            NothingMatched: the run is not open in this vault.
            StorageError: the run stays open, or, after the point of no return, its block appears at the next opening.
        """
        with self._core.writing():
            self._open_row(run)
            facts = self._blocks.facts(topic, release, run.id, layers, width, d_model, len(rows))
            key = container.new_key()
            self._prepare(run, facts, key)
            self._blocks.write(run.block_id, key, facts, rows)
            added = {run.block_id: key}
            topics = dict.fromkeys(added, topic)
            rewrite(self._core.table, add=added, topics=topics, without={self._key_id(run)}, rotate=True)
            self.promote(run.block_id)
            self._checkpoints.drop({self._key_id(run)})
        return self._blocks.get(run.block_id)

    def fail(self, run: TrainingRun) -> None:
        """End an open run without a block. It stays charged and its key is destroyed. Raises NothingMatched."""
        with self._core.writing():
            self._end([self._open_row(run)])

    def end(self, run_id: str) -> bool:
        """End a run by its id, without a block, if it is open. Return True if it was open."""
        with self._core.writing():
            with self._core.database.session() as session:
                session.expire_on_commit = False
                row = session.get(RunRow, run_id)
            if row is None or row.state != "open":
                return False
            self._end([row])
        return True

    def promote(self, block_id: str) -> None:
        """Make a pending block live and its run finished. Its key is stored and its run key destroyed before."""
        with self._core.database.session() as session:
            session.execute(update(BlockRow).where(BlockRow.id == block_id).values(state="live"))
            row = session.execute(select(RunRow).where(RunRow.block_id == block_id)).scalar_one()
            row.state = "finished"
            self._ledger.append_in(session, "run_finished", {"run": row.id, "block": block_id})

    def recover(self) -> None:
        """Finish or undo an interrupted `finish`: it is finished if the block's key is in the key table."""
        with self._core.database.session() as session:
            pending = session.execute(select(BlockRow.id).where(BlockRow.state == "pending")).scalars().all()
        for block_id in pending:
            if block_id in self._core.table.keys:
                self.promote(block_id)
            else:
                self._roll_back(block_id)
        self._drop_failed_keys()
        self._checkpoints.settle()

    def _check(self, topic: str, spend: Mapping[str, Any], run_key: bytes | None) -> None:
        if run_key is not None and not self._core.simulated:
            raise Refused("Only a simulated vault takes a run key from outside. Leave run_key out.")
        if run_key is not None and len(run_key) != KEY_BYTES:
            raise UsageError("A run key has 32 bytes.")
        if topic in _strings(spend):
            raise Refused("A spend is kept for ever, so it must not name the topic. Name the run instead.")

    def _start(
        self, facts: dict[str, Any], spend: Mapping[str, Any], run_key: bytes, earlier_runs: list[RunRow]
    ) -> TrainingRun:
        planned = self._planned_run(facts["topic"], facts["release"])
        run_id, block_id = (planned.id, planned.block_id) if planned else (new_id(), new_id())
        run = TrainingRun(run_id, run_key, False, block_id)
        # A planned run keeps its cell key: until the row is written, the old cell must open.
        key_id, cell_key = new_id(), self._core.table.keys[planned.id] if planned else container.new_key()
        sealed = self._core.seal("run", run.id, cell_key, canonical_json(facts))
        old_key_ids = {row.key_id for row in earlier_runs}
        added = {run.id: cell_key, key_id: run_key}
        topics = {item: facts["topic"] for item in added if item not in self._core.table.keys}
        # The key first: a charged run without a key could not be resumed; a key without a charge is only removed.
        rewrite(self._core.table, add=added, topics=topics, without=old_key_ids, rotate=bool(old_key_ids))
        with self._core.database.session() as session:
            self._end_failed(session, earlier_runs)
            row = session.get(RunRow, run.id) or RunRow(id=run.id, block_id=run.block_id)
            row.key_id, row.state, row.created, row.sealed = key_id, "open", time.time(), sealed
            session.add(row)
            ids = {"run": run.id, "block": run.block_id, "release": facts["release"], "records": facts["records"]}
            self._ledger.append_in(session, SPEND, {**ids, "spend": dict(spend)})
        self._checkpoints.drop(old_key_ids)
        return run

    def _planned_run(self, topic: str, release: str) -> RunRecord | None:
        return next((run for run in self.of(topic) if (run.state, run.release) == (PLANNED, release)), None)

    def _open_runs(self, topic: str, release: str) -> list[tuple[RunRow, dict[str, Any]]]:
        with self._core.database.session() as session:
            session.expire_on_commit = False
            rows = session.execute(select(RunRow).where(RunRow.state == "open")).scalars().all()
        readable = [(row, self.facts(row)) for row in rows if row.id in self._core.table.keys]
        return [(row, facts) for row, facts in readable if (facts["topic"], facts["release"]) == (topic, release)]

    def facts(self, row: RunRow) -> dict[str, Any]:
        """Return the sealed facts of a run: topic, release, plan, data, records."""
        facts: dict[str, Any] = json.loads(self._core.open_cell("run", row.id, row.sealed))
        return facts

    def _run_record(self, row: RunRow) -> RunRecord:
        facts = self.facts(row)
        sealed_facts = facts["topic"], facts["release"], facts["plan"], frozenset(facts["records"])
        return RunRecord(row.id, row.key_id, row.block_id, row.state, *sealed_facts)

    def _open_row(self, run: TrainingRun) -> RunRow:
        with self._core.database.session() as session:
            session.expire_on_commit = False
            row = session.get(RunRow, run.id)
        if row is None or row.state != "open" or row.key_id not in self._core.table.keys:
            raise NothingMatched("This run is not open in this vault. Begin a new one; it is charged again.")
        return row

    def _key_id(self, run: TrainingRun) -> str:
        with self._core.database.session() as session:
            return session.execute(select(RunRow.key_id).where(RunRow.id == run.id)).scalar_one()

    def _prepare(self, run: TrainingRun, facts: dict[str, Any], key: bytes) -> None:
        sealed = self._core.seal("block-facts", run.block_id, key, canonical_json(facts))
        with self._core.database.session() as session:
            session.add(BlockRow(id=run.block_id, state="pending", created=time.time(), sealed=sealed))
            session.execute(update(RunRow).where(RunRow.id == run.id).values(state="finishing"))

    def _end(self, rows: Sequence[RunRow]) -> None:
        key_ids = {row.key_id for row in rows}
        with self._core.database.session() as session:
            self._end_failed(session, rows)
        rewrite(self._core.table, without=key_ids, rotate=True)
        self._checkpoints.drop(key_ids)

    def _end_failed(self, session: Session, rows: Sequence[RunRow]) -> None:
        for row in rows:
            session.execute(update(RunRow).where(RunRow.id == row.id).values(state="failed"))
            self._ledger.append_in(session, "run_failed", {"run": row.id})

    def _roll_back(self, block_id: str) -> None:
        self._core.files.unlink(self._core.block_file(block_id))
        with self._core.database.session() as session:
            session.execute(update(RunRow).where(RunRow.block_id == block_id).values(state="open"))
            session.delete(session.get_one(BlockRow, block_id))

    def _drop_failed_keys(self) -> None:
        with self._core.database.session() as session:
            rows = session.execute(select(RunRow.id, RunRow.key_id, RunRow.state)).all()
            runs_without_key = [run for run in rows if run[2] == "open" and run[1] not in self._core.table.keys]
            for run_id, _, _ in runs_without_key:  # its key was destroyed before its end was written
                session.execute(update(RunRow).where(RunRow.id == run_id).values(state="failed"))
                self._ledger.append_in(session, "run_failed", {"run": run_id})
        ended = {key_id for _, key_id, state in rows if state in ("failed", "finished")}
        if key_ids := ended & self._core.table.keys.keys():
            rewrite(self._core.table, without=key_ids, rotate=True)


def _facts(
    topic: str, release: str, plan: Mapping[str, Any], data_digest: str, record_ids: Sequence[str]
) -> dict[str, Any]:
    """Return the facts of a run, in the form of its sealed cell."""
    return {"topic": topic, "release": release, "plan": dict(plan), "data": data_digest, "records": [*record_ids]}


def _equal(earlier_facts: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return hmac.compare_digest(canonical_json(dict(earlier_facts)), canonical_json(dict(facts)))


def _strings(value: Any) -> set[str]:
    """Return all strings in a JSON value, keys included."""
    if isinstance(value, Mapping):
        return {text for pair in value.items() for part in pair for text in _strings(part)}
    if isinstance(value, list | tuple):
        return {text for part in value for text in _strings(part)}
    return {value} if isinstance(value, str) else set()
