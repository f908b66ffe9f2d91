"""Training runs and the blocks they end in.

Invariants
- `begin` returns only after the sealed run key and the ledger's `spend` event are durable (I6).
- A run whose data or plan changed is never resumed: it ends failed, stays charged, and its key is destroyed.
- The run key is destroyed, under a new epoch, before the block is visible; no stream can be drawn again.
- `finish` is whole or absent: pending row -> container -> key table (the point of no return) -> live row (I7).
- A seeded run key is refused outside simulated vaults.
- A checkpoint belongs to one open run, whose data and plan have not changed, and goes with its key.
- A wanted run is a wish, sealed and durable: nothing is charged before it begins, and the next run of its topic and
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
from fedmem.vault.crypto import container
from fedmem.vault.store.blocks import BlockInfo, BlockStore
from fedmem.vault.store.checkpoints import Checkpoints
from fedmem.vault.store.core import Core, batches
from fedmem.vault.store.database import BlockRow, RunRow
from fedmem.vault.store.ledger import Ledger
from fedmem.vault.store.topics import ids_of, rewrite

KEY_BYTES = 32
PLANNED = "wanted"


@dataclass(frozen=True)
class TrainingRun:
    """A training run that has been charged.

    Attributes:
        id: random id, also in the ledger.
        key: 32 bytes for the run's randomness; destroyed by `finish`.
        resumed: whether an interrupted run with the same data and plan goes on.
        block_id: the id its block will have.
    """

    id: str
    key: bytes = field(repr=False)
    resumed: bool
    block_id: str


@dataclass(frozen=True)
class RunRecord:
    """What a run is about, from its sealed facts.

    Attributes:
        state: wanted, open, finishing, finished or failed.
        plan: the caller's plan, as `begin` got it.
        records: ids of the records it learned from; empty where they are not known.
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
        """Whether one of `records` took part, or may have, for lack of lineage. A wish has learned nothing."""
        return self.state != PLANNED and (not self.records or not self.records.isdisjoint(records))


class Runs:
    """The runs of an open vault."""

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

        Raises:
            Refused: a seeded key in a vault that is not simulated, or a spend that names the topic.
            StorageError: nothing was charged and nothing may be trained.
        """
        self._check(topic, spend, run_key)
        facts = _facts(topic, release, plan, data_digest, record_ids)
        with self._core.writing():
            old = self._open_runs(topic, release)
            for row, known in old:
                if _equal(known, facts):
                    return TrainingRun(row.id, self._core.table.keys[row.key_id], True, row.block_id)
            return self._start(facts, spend, run_key or container.new_key(), [row for row, _ in old])

    def end_changed(
        self, topic: str, release: str, plan: Mapping[str, Any], data_digest: str, record_ids: Sequence[str]
    ) -> bool:
        """End the open runs of this topic and release whose data or plan is another; whether there was one.

        They stay charged; their keys and checkpoints are destroyed. Raises StorageError.
        """
        facts = _facts(topic, release, plan, data_digest, record_ids)
        with self._core.writing():
            changed = [row for row, known in self._open_runs(topic, release) if not _equal(known, facts)]
            if changed:
                self._end(changed)
        return bool(changed)

    def save(self, run: TrainingRun, step: int, data: bytes) -> None:
        """Seal where an open run stands after `step` steps. Raises NothingMatched, StorageError."""
        with self._core.writing():
            self._checkpoints.save(self._open_row(run).key_id, run.key, step, data)

    def saved(self, run: TrainingRun) -> tuple[int, bytes] | None:
        """(step, data) that was sealed last for an open run. Raises NothingMatched."""
        self._core.reading()
        return self._checkpoints.load(self._open_row(run).key_id, run.key)

    def want(self, wishes: Sequence[RunRecord], commit: Callable[[Session], None]) -> None:
        """Write wishes to train, in one transaction with what `commit` writes. Charges nothing."""
        keys = {wish.id: container.new_key() for wish in wishes}
        if keys:
            rewrite(self._core.table, add=keys, topics={wish.id: wish.topic for wish in wishes})
        with self._core.database.session() as session:
            for wish in wishes:
                facts = {"topic": wish.topic, "release": wish.release, "plan": wish.plan, "records": []}
                sealed = self._core.seal("run", wish.id, keys[wish.id], canonical_json(facts))
                named = {"id": wish.id, "key_id": wish.key_id, "block_id": wish.block_id, "state": PLANNED}
                session.add(RunRow(**named, created=time.time(), sealed=sealed))
            commit(session)

    def drop_planned(self, ids: Collection[str]) -> None:
        """Give up wishes that have not begun; others are left as they are."""
        mine = {run.id for run in self.get(ids) if run.state == PLANNED}
        if not mine:
            return
        with self._core.database.session() as session:
            for row in session.execute(select(RunRow).where(RunRow.id.in_(mine))).scalars():
                session.delete(row)
        rewrite(self._core.table, without=mine)

    def of(self, topic: str) -> list[RunRecord]:
        """The runs of one topic, oldest first."""
        return self.get(ids_of(self._core.table, topic))

    def get(self, ids: Collection[str]) -> list[RunRecord]:
        """Those of `ids` that are runs, oldest first."""
        self._core.reading()
        rows: list[RunRow] = []
        with self._core.database.session() as session:
            session.expire_on_commit = False
            for batch in batches(ids):
                rows += session.execute(select(RunRow).where(RunRow.id.in_(batch))).scalars()
        return [self._learned(row) for row in sorted(rows, key=lambda row: row.created)
                if row.id in self._core.table.keys]  # fmt: skip

    def finish(
        self, run: TrainingRun, topic: str, release: str, rows: bytes, layers: int, width: int, d_model: int
    ) -> BlockInfo:
        """Seal `rows` (safetensors) as the run's block, destroy the run key, and make the block visible.

        Raises:
            NothingMatched: the run is not open here. StorageError: the run stays open, or the block appears at the
            next opening where the disk failed after the point of no return.
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
        """End an open run without a block. It stays charged and its key is destroyed."""
        with self._core.writing():
            self._end([self._open_row(run)])

    def end(self, run_id: str) -> bool:
        """End a run by its id, without a block, if it is open; whether it was."""
        with self._core.writing():
            with self._core.database.session() as session:
                session.expire_on_commit = False
                row = session.get(RunRow, run_id)
            if row is None or row.state != "open":
                return False
            self._end([row])
        return True

    def promote(self, block_id: str) -> None:
        """Make a pending block live and its run finished. Its key is in the table, its run key is destroyed."""
        with self._core.database.session() as session:
            session.execute(update(BlockRow).where(BlockRow.id == block_id).values(state="live"))
            row = session.execute(select(RunRow).where(RunRow.block_id == block_id)).scalar_one()
            row.state = "finished"
            self._ledger.append_in(session, "run_finished", {"run": row.id, "block": block_id})

    def recover(self) -> None:
        """Finish or undo what a cut `finish` left: the key table decides which."""
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

    def _start(self, facts: dict[str, Any], spend: Mapping[str, Any], run_key: bytes, old: list[RunRow]) -> TrainingRun:
        wish = next((w for w in self.of(facts["topic"]) if (w.state, w.release) == (PLANNED, facts["release"])), None)
        run = (
            TrainingRun(wish.id, run_key, False, wish.block_id)
            if wish
            else TrainingRun(new_id(), run_key, False, new_id())
        )
        # A wish keeps its cell key: until the row is written, the old cell must open.
        key_id, cell_key = new_id(), self._core.table.keys[wish.id] if wish else container.new_key()
        sealed = self._core.seal("run", run.id, cell_key, canonical_json(facts))
        dead = {row.key_id for row in old}
        added = {run.id: cell_key, key_id: run_key}
        topics = {item: facts["topic"] for item in added if item not in self._core.table.keys}
        # The key first: a charged run whose key is lost could not be resumed, an uncharged key is only swept.
        rewrite(self._core.table, add=added, topics=topics, without=dead, rotate=bool(dead))
        with self._core.database.session() as session:
            self._end_failed(session, old)
            row = session.get(RunRow, run.id) or RunRow(id=run.id, block_id=run.block_id)
            row.key_id, row.state, row.created, row.sealed = key_id, "open", time.time(), sealed
            session.add(row)
            named = {"run": run.id, "block": run.block_id, "release": facts["release"], "records": facts["records"]}
            self._ledger.append_in(session, "spend", {**named, "spend": dict(spend)})
        self._checkpoints.drop(dead)
        return run

    def _open_runs(self, topic: str, release: str) -> list[tuple[RunRow, dict[str, Any]]]:
        with self._core.database.session() as session:
            session.expire_on_commit = False
            rows = session.execute(select(RunRow).where(RunRow.state == "open")).scalars().all()
        known = [(row, self.facts(row)) for row in rows if row.id in self._core.table.keys]
        return [(row, facts) for row, facts in known if (facts["topic"], facts["release"]) == (topic, release)]

    def facts(self, row: RunRow) -> dict[str, Any]:
        """The sealed facts of a run: topic, release, plan, data, records."""
        facts: dict[str, Any] = json.loads(self._core.open_cell("run", row.id, row.sealed))
        return facts

    def _learned(self, row: RunRow) -> RunRecord:
        facts = self.facts(row)
        about = facts["topic"], facts["release"], facts["plan"], frozenset(facts["records"])
        return RunRecord(row.id, row.key_id, row.block_id, row.state, *about)

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
        dead = {row.key_id for row in rows}
        with self._core.database.session() as session:
            self._end_failed(session, rows)
        rewrite(self._core.table, without=dead, rotate=True)
        self._checkpoints.drop(dead)

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
            lost = [r for r in rows if r[2] == "open" and r[1] not in self._core.table.keys]
            for run_id, _, _ in lost:  # its key went before its end was written
                session.execute(update(RunRow).where(RunRow.id == run_id).values(state="failed"))
                self._ledger.append_in(session, "run_failed", {"run": run_id})
        dead = {key_id for _, key_id, state in rows if state in ("failed", "finished")} & self._core.table.keys.keys()
        if dead:
            rewrite(self._core.table, without=dead, rotate=True)


def _facts(
    topic: str, release: str, plan: Mapping[str, Any], data_digest: str, record_ids: Sequence[str]
) -> dict[str, Any]:
    """What a run is about, as its sealed cell holds it."""
    return {"topic": topic, "release": release, "plan": dict(plan), "data": data_digest, "records": [*record_ids]}


def _equal(known: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return hmac.compare_digest(canonical_json(dict(known)), canonical_json(dict(facts)))


def _strings(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return {text for pair in value.items() for part in pair for text in _strings(part)}
    if isinstance(value, list | tuple):
        return {text for part in value for text in _strings(part)}
    return {value} if isinstance(value, str) else set()
