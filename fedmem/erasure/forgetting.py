"""Forgetting records: the blocks and runs that are erased with them, and the blocks to retrain without them.

Invariants
- A block that learned an erased record is erased whole, with every version, run and key of its topic's block. No weight
  that was trained on the record remains, and no older version replaces it unasked.
- A run without lineage counts as a run that learned every record of its topic.
- A block that never learned an erased record stays as it is.
- A retraining repeats the plan and the release of the topic's newest block, on the remaining records, from public
  rows and with a fresh noise stream. It is a planned run until it begins, and is charged then. Without a remaining
  record there is no retraining.

    consequences = forgetting(vault, frozenset({record_id}), frozenset(), "retrain")
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
    """A block to retrain.

    Attributes:
        run: id of the run that is repeated.
        topic: topic of the block.
        release: digest of the release.
        plan: the plan of that run.
        records: ids of the remaining records.
        blocks: ids of the blocks that the new one replaces.
    """

    run: str
    topic: str = field(repr=False)
    release: str
    plan: Mapping[str, Any] = field(repr=False)
    records: tuple[str, ...] = field(repr=False)
    blocks: tuple[str, ...] = ()

    def planned_run(self) -> RunRecord:
        """Return a planned run with new random ids for it, its key and its block."""
        ids = new_id(), new_id(), new_id()
        return RunRecord(*ids, PLANNED, self.topic, self.release, dict(self.plan), frozenset())


class Retrain(Protocol):
    """The retraining of blocks; it is implemented above the engine, where release and policy are known."""

    def check(self, vault: Vault, retraining: Retraining) -> None:
        """Check that the training may begin. Change nothing.

        Args:
            vault: the vault, open for writing.
            retraining: the blocks and the plan of the new training.

        Raises:
            BudgetExceeded: the run does not fit into the budget. Refused, VersionMismatch: it cannot be trained here.
        """

    def train(self, vault: Vault, run: RunRecord) -> str:
        """Charge and train a planned run, or continue an interrupted training, and return the new block's id.

        Args:
            vault: the vault, open for writing.
            run: the planned run, or an open one.

        Raises:
            BudgetExceeded, Refused, VersionMismatch: as `check`.
        """


@dataclass(frozen=True)
class Forgetting:
    """The consequences of forgetting some records.

    Attributes:
        ids: ids of everything to erase.
        deleted: ids of the blocks that are erased with the records.
        retrain: the blocks to retrain.
        shared: True if one of the records is shareable.
    """

    ids: frozenset[str]
    deleted: tuple[str, ...] = ()
    retrain: tuple[Retraining, ...] = ()
    shared: bool = False


def forgetting(vault: Vault, records: frozenset[str], whole: frozenset[str], blocks: Choice | None) -> Forgetting:
    """Return the consequences of erasing some records, and all blocks of some topics.

    Args:
        vault: the open vault.
        records: ids of the records.
        whole: topics whose blocks are erased, whatever they learned.
        blocks: retrain or delete, for blocks that learned one of the records; None if the caller did not choose.

    Raises:
        NothingMatched: a record is unknown.
        UsageError: a block learned one of the records, and `blocks` is None.
    """
    record_topics = {record.topic for record in vault.records_by_id(records)}
    ids, deleted, retrainings = set(records), list[str](), list[Retraining]()
    for topic in sorted({topic for topic in record_topics if topic is not None} | whole):
        runs, learned = _affected(vault, topic, records, topic in whole)
        ids.update(item for run in runs for item in (run.id, run.key_id, run.block_id))
        ids.update(block.id for block in learned)
        deleted += [block.id for block in learned]
        if learned and blocks is None:
            raise UsageError(
                "A block learned a record that would be erased. Choose: retrain the block without it, or delete it."
            )
        if learned and blocks == "retrain":
            retrainings += _retrainings(vault, topic, learned, runs, records)
    return Forgetting(frozenset(ids), tuple(deleted), tuple(retrainings), None in record_topics)


def _affected(
    vault: Vault, topic: str, records: frozenset[str], whole: bool
) -> tuple[list[RunRecord], list[BlockInfo]]:
    """Return the runs and blocks of a topic that are erased with `records`, or all of them if `whole`."""
    runs, blocks = [run for run in vault.runs(topic) if run.state != PLANNED], vault.blocks_of(topic)
    affected = [run for run in runs if run.may_hold(records)]
    if whole or {run.block_id for run in affected} & {block.id for block in blocks}:
        return runs, blocks
    return affected, []


def _retrainings(
    vault: Vault, topic: str, blocks: list[BlockInfo], runs: Iterable[RunRecord], records: frozenset[str]
) -> list[Retraining]:
    """Return the retraining of a topic's newest block without `records`; empty if no record remains."""
    newest = max(blocks, key=lambda block: block.version)
    repeated = next(run for run in runs if run.block_id == newest.id)
    remaining = tuple(record.id for record in vault.records(topic) if record.id not in records)
    if not remaining:
        return []
    replaced = tuple(block.id for block in blocks)
    return [Retraining(repeated.id, topic, repeated.release, repeated.plan, remaining, replaced)]
