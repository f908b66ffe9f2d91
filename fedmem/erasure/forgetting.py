"""Forgetting records: what goes with them, and what is trained anew without them.

Invariants
- A block that learned an erased record goes whole, with every version, run and key of its topic's block: no weight
  that saw the record stays, and no older version takes its place unasked.
- Where a run's records are not known it counts as having learned every record of its topic.
- A block that never saw an erased record stays as it is.
- A retraining repeats the plan and the release of the topic's newest block, on the records that remain, from public
  rows and with a fresh noise stream; it is a wish until it begins, and is charged then. Where no record remains there
  is none.

    found = forgetting(vault, frozenset({record_id}), frozenset(), "retrain")
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from fedmem.errors import UsageError
from fedmem.storage.ids import new_id
from fedmem.vault.store.ledger import PLANNED
from fedmem.vault.vault import BlockInfo, RunRecord, Vault

Choice = Literal["retrain", "delete"]
CHOICES = ("retrain", "delete")


@dataclass(frozen=True)
class Retraining:
    """A block to train anew.

    Attributes:
        run: id of the run that is repeated.
        plan: the plan of that run, as the ledger's caller gave it.
        records: ids of the records that remain.
        blocks: ids of the blocks in whose place the new one comes.
    """

    run: str
    topic: str = field(repr=False)
    release: str
    plan: Mapping[str, Any] = field(repr=False)
    records: tuple[str, ...] = field(repr=False)
    blocks: tuple[str, ...] = ()

    def planned_run(self) -> RunRecord:
        """The run to want: new random ids for it and its block."""
        ids = new_id(), new_id(), new_id()
        return RunRecord(*ids, PLANNED, self.topic, self.release, dict(self.plan), frozenset())


class Retrain(Protocol):
    """Trains blocks anew; lies above the engine, where the release and the policy are known."""

    def check(self, vault: Vault, wanted: Retraining) -> None:
        """Return if the training may go ahead. Raises BudgetExceeded, Refused, VersionMismatch; changes nothing."""

    def train(self, vault: Vault, wanted: RunRecord) -> str:
        """Train, charged before; the new block's id. An interrupted training goes on. Raises as `check`."""


@dataclass(frozen=True)
class Forgetting:
    """What goes with some records: `ids` in all, blocks `deleted` with them, what to `retrain`, and whether a
    shareable record is among them."""

    ids: frozenset[str]
    deleted: tuple[str, ...] = ()
    retrain: tuple[Retraining, ...] = ()
    shared: bool = False


def forgetting(vault: Vault, records: frozenset[str], whole: frozenset[str], blocks: Choice | None) -> Forgetting:
    """What goes with `records`, and with the blocks of the topics `whole`.

    Raises:
        NothingMatched: an unknown record. UsageError: a block learned one of them, and `blocks` is None.
    """
    found = {record.id: record.topic for record in vault.records_by_id(records)}
    ids, deleted, again = set(records), list[str](), list[Retraining]()
    for topic in sorted({topic for topic in found.values() if topic is not None} | whole):
        runs, learned = _tainted(vault, topic, records, topic in whole)
        ids.update(item for run in runs for item in (run.id, run.key_id, run.block_id))
        ids.update(block.id for block in learned)
        deleted += [block.id for block in learned]
        if learned and blocks is None:
            raise UsageError("A block learned what is to be erased. Choose: retrain it without, or delete it.")
        if learned and blocks == "retrain":
            again += _again(vault, topic, learned, runs, records)
    return Forgetting(frozenset(ids), tuple(deleted), tuple(again), None in found.values())


def _tainted(vault: Vault, topic: str, records: frozenset[str], whole: bool) -> tuple[list[RunRecord], list[BlockInfo]]:
    """Runs and blocks of a topic that go with `records`."""
    runs, blocks = [run for run in vault.runs(topic) if run.state != PLANNED], vault.blocks_of(topic)
    tainted = [run for run in runs if run.may_hold(records)]
    if whole or {run.block_id for run in tainted} & {block.id for block in blocks}:
        return runs, blocks
    return tainted, []


def _again(
    vault: Vault, topic: str, blocks: list[BlockInfo], runs: Iterable[RunRecord], records: frozenset[str]
) -> list[Retraining]:
    newest = max(blocks, key=lambda block: block.version)
    repeated = next(run for run in runs if run.block_id == newest.id)
    remaining = tuple(record.id for record in vault.records(topic) if record.id not in records)
    if not remaining:
        return []
    replaced = tuple(block.id for block in blocks)
    return [Retraining(repeated.id, topic, repeated.release, repeated.plan, remaining, replaced)]
