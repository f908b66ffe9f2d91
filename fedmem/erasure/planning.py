"""Plan an erasure: list what it would destroy, without destroying it.

Invariants
- Planning has no side effect; the same vault and scope give the same digest.
- The digest covers every item of every registered store in scope, the fate of blocks, and the vault's generation.
  It also covers the backups and recovery kits in reach, because the erasure removes them.
  So exactly the plan is executed.
- The digest contains no topic name, so a receipt with the digest reveals nothing about the topic.
- The cost depends on the scope (and, for a date, on the list of records), not on the size of the vault.

The scopes block, topic and subject are whole: records, blocks and runs are erased together. The scopes record, before
and due take records alone. A block that learned one of them is erased too, and is retrained without them if the caller
chose so.

    planned = plan(vault, Scope.topic("health"))
    execute(vault, planned, planned.digest)
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fedmem.erasure.forgetting import CHOICES, Choice, Forgetting, Retraining, forgetting
from fedmem.errors import NothingMatched, UsageError
from fedmem.storage.canonical import canonical_json, digest
from fedmem.vault.backup.backup_registry import in_reach
from fedmem.vault.store.content_stores import KeyTableStore, StoredItem
from fedmem.vault.store.turns import serialised
from fedmem.vault.vault import ALL, Vault

KEY_TABLE = KeyTableStore.name
WHOLE = ("block", "topic", "subject")


@dataclass(frozen=True)
class Scope:
    """The part of a vault to erase. Make one with `block`, `topic`, `subject`, `record`, `before` or `due`."""

    kind: str
    name: str = field(default="", repr=False)

    @classmethod
    def block(cls, id_or_topic: str) -> "Scope":
        """Return the scope of a topic's block: all its versions, with the topic's records, vectors, runs and keys.

        Args:
            id_or_topic: id of a block, or the name of its topic; not empty.
        """
        return cls("block", _valid_name(id_or_topic))

    @classmethod
    def topic(cls, name: str) -> "Scope":
        """Return the scope of everything that is stored under a topic, with or without a block.

        Args:
            name: name of the topic, not empty.
        """
        return cls("topic", _valid_name(name))

    @classmethod
    def subject(cls) -> "Scope":
        """Return the scope of the whole subject: records, blocks, runs and their keys. The ledger stays."""
        return cls("subject")

    @classmethod
    def record(cls, *ids: str) -> "Scope":
        """Return the scope of records by id.

        Args:
            *ids: ids of records, 32 hex digits; at least one.

        Raises:
            UsageError: no id, or an empty one.
        """
        if not ids:
            raise UsageError("Name the records to erase by their ids. An erasure of no record is not possible.")
        return cls("record", ",".join(sorted({_valid_name(item) for item in ids})))

    @classmethod
    def before(cls, when: datetime) -> "Scope":
        """Return the scope of the records that were added, and the blocks that were made, before a time.

        Args:
            when: the time, with a time zone.
        """
        return cls("before", _utc_text(when))

    @classmethod
    def due(cls, at: datetime | None = None) -> "Scope":
        """Return the scope of the records that are, at a time or now, past the retention rule of their topic.

        Args:
            at: the time, with a time zone; None is now.
        """
        return cls("due", _utc_text(at or datetime.now(UTC)))

    def encode(self) -> bytes:
        """Return the canonical bytes of the scope, to which a receipt commits."""
        return canonical_json({"kind": self.kind, "name": self.name})


@dataclass(frozen=True)
class Plan:
    """The plan of an erasure.

    Attributes:
        digest: hex; `execute` asks for it.
        scope: the part of the vault to erase.
        ids: random ids of everything in scope.
        items: the items of each store in scope, and the backups and recovery kits in reach, which the erasure removes.
        counts: number of items by kind: record, block, run, key, retention, backup, kit.
        blocks: retrain or delete, as the caller chose; None if the scope gives no choice.
        deleted: ids of the blocks that had learned a record of the scope.
        retrain: the blocks to retrain without the scope's records.
        shared: True if a part of the scope was shareable.
        effects: everything that the scope takes, as it was when `state` was the state of the vault.
        state: (serial of the key table, revision of the database) at the time of the plan.
    """

    digest: str
    scope: Scope
    ids: frozenset[str] = field(repr=False)
    items: tuple[StoredItem, ...] = field(repr=False)
    counts: dict[str, int]
    blocks: Choice | None = None
    deleted: tuple[str, ...] = ()
    retrain: tuple[Retraining, ...] = ()
    shared: bool = False
    effects: Forgetting = field(default_factory=lambda: Forgetting(frozenset()), repr=False)
    state: tuple[int, int] = (0, 0)


@serialised
def plan(vault: Vault, scope: Scope, *, blocks: Choice | None = None) -> Plan:
    """Return the plan of the erasure of `scope`.

    Args:
        vault: the open vault.
        scope: the part of the vault to erase.
        blocks: retrain or delete, for a block that learned a record of a scope that takes records alone.

    Raises:
        NothingMatched: the vault holds nothing of the scope.
        UsageError: such a block without a choice, or a choice for a scope that takes blocks whole.
    """
    if blocks is not None and (blocks not in CHOICES or scope.kind in WHOLE):
        raise UsageError("retrain or delete is the choice for blocks that learned erased records; this scope has none.")
    state = _state(vault)
    if scope.kind in WHOLE:
        effects = Forgetting(_ids_in_whole_scope(vault, scope))
    else:
        effects = forgetting(vault, *_records_in_scope(vault, scope), blocks)
    return _planned(vault, scope, blocks, effects, state)


@serialised
def still_holds(vault: Vault, planned: Plan) -> bool:
    """Return True if a plan made now would be the same. Every store is asked again.

    The lineage of runs is read again only if key table or database changed: it is in sealed cells, so it is slow.

    Args:
        vault: an open vault.
        planned: the plan to compare.

    Raises:
        NothingMatched: the vault holds nothing of the scope any more.
    """
    if _state(vault) == planned.state:
        again = _planned(vault, planned.scope, planned.blocks, planned.effects, planned.state)
    else:
        again = plan(vault, planned.scope, blocks=planned.blocks)
    return again.digest == planned.digest


def _state(vault: Vault) -> tuple[int, int]:
    return vault.core.table.serial, vault.core.database.revision()


def _planned(vault: Vault, scope: Scope, blocks: Choice | None, effects: Forgetting, state: tuple[int, int]) -> Plan:
    items = _stored(vault, effects.ids)
    if not effects.ids or not items:
        raise NothingMatched("The vault holds nothing of this scope. `fedmem block list` shows what there is.")
    if any(item.store == KEY_TABLE for item in items):  # only a new generation retires copies
        items += _stored(vault, frozenset(copy.id for copy in in_reach(vault.core)))
    items.sort()
    rows = [[item.store, item.id, item.kind, item.digest] for item in items]
    facts = {"vault": vault.id, "generation": vault.generation, "ids": sorted(effects.ids), "items": rows,
             "blocks": blocks, "retrain": sorted(retraining.run for retraining in effects.retrain)}  # fmt: skip
    kinds = Counter(item.kind for item in set(items) if item.store != "block-files")
    counts, shared = dict(sorted(kinds.items())), scope.kind == "subject" or effects.shared
    rest = blocks, effects.deleted, effects.retrain, shared, effects, state
    return Plan(digest(facts), scope, effects.ids, tuple(items), counts, *rest)


def _stored(vault: Vault, ids: frozenset[str]) -> list[StoredItem]:
    return [item for store in vault.stores for item in store.enumerate(ids)]


def _ids_in_whole_scope(vault: Vault, scope: Scope) -> frozenset[str]:
    if scope.kind == "subject":
        return vault.ids_of(ALL)
    return vault.ids_of(vault.block(scope.name).topic if scope.kind == "block" else scope.name)


def _records_in_scope(vault: Vault, scope: Scope) -> tuple[frozenset[str], frozenset[str]]:
    """Return the ids of the records in scope, and the topics whose blocks are erased whatever they learned."""
    if scope.kind == "record":
        return frozenset(scope.name.split(",")), frozenset()
    when = datetime.fromisoformat(scope.name).timestamp()
    if scope.kind == "before":
        old_block_topics = frozenset(block.topic for block in vault.blocks() if block.created < when)
        return vault.records_before(when), old_block_topics
    expired = (vault.records_before(when - 86400 * days, topic) for topic, days in vault.retention().items())
    return frozenset().union(*expired), frozenset()


def _valid_name(name: str) -> str:
    if not name:
        raise UsageError("Name the block, topic or record to erase. The name must not be empty.")
    return name


def _utc_text(when: datetime) -> str:
    if when.tzinfo is None:
        raise UsageError("A date needs its time zone; take datetime(…, tzinfo=UTC).")
    return when.astimezone(UTC).isoformat()
