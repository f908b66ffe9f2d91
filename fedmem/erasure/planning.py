"""What an erasure would destroy, without destroying it.

Invariants
- Planning has no side effect; the same vault and scope give the same digest.
- The digest covers every item of every registered store in scope, what becomes of blocks, and the vault's generation:
  what is executed is what was planned.
- The digest holds no topic name, so a receipt that shows it says nothing about the topic.
- The cost is that of what is in scope (and, for a date, of the list of records), not of the vault.

Block, topic and subject are whole: records, blocks and runs go together. Records, a date and what is due take records
alone; a block that learned one of them goes too, and is trained anew without them or not, as the caller chose.

    planned = plan(vault, Scope.topic("health"))
    execute(vault, planned, planned.digest)
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fedmem.erasure.forgetting import CHOICES, Choice, Forgetting, Retraining, forgetting
from fedmem.errors import NothingMatched, UsageError
from fedmem.storage.canonical import canonical_json, digest
from fedmem.vault.store.content_stores import StoredItem
from fedmem.vault.store.core import serialised
from fedmem.vault.vault import ALL, Vault

WHOLE = ("block", "topic", "subject")


@dataclass(frozen=True)
class Scope:
    """What to erase. Make one with `block`, `topic`, `subject`, `record`, `before` or `due`."""

    kind: str
    name: str = field(default="", repr=False)

    @classmethod
    def block(cls, id_or_topic: str) -> "Scope":
        """Every version of the block of one topic, with the topic's records, vectors, runs and keys."""
        return cls("block", _named(id_or_topic))

    @classmethod
    def topic(cls, name: str) -> "Scope":
        """Everything stored under a topic, whether or not it has a block."""
        return cls("topic", _named(name))

    @classmethod
    def subject(cls) -> "Scope":
        """Everything of the vault's subject: records, blocks, runs and their keys; the ledger stays."""
        return cls("subject")

    @classmethod
    def record(cls, *ids: str) -> "Scope":
        """Records by id."""
        if not ids:
            raise UsageError("Name the records to erase by their ids; none means nothing.")
        return cls("record", ",".join(sorted({_named(item) for item in ids})))

    @classmethod
    def before(cls, when: datetime) -> "Scope":
        """Every record that was added before `when`, and every block that was made before it."""
        return cls("before", _utc(when))

    @classmethod
    def due(cls, at: datetime | None = None) -> "Scope":
        """Every record that is older, `at` that time or now, than the vault keeps records of its topic."""
        return cls("due", _utc(at or datetime.now(UTC)))

    def encode(self) -> bytes:
        """Bytes to commit to."""
        return canonical_json({"kind": self.kind, "name": self.name})


@dataclass(frozen=True)
class Plan:
    """What an erasure would destroy.

    Attributes:
        digest: hex; give it back to `execute`.
        ids: random ids of everything in scope.
        items: what each store holds of them.
        counts: items by kind: record, block, run, key, retention.
        blocks: retrain or delete, as the caller chose; None where the scope does not ask.
        deleted: ids of the blocks that had learned a record of the scope.
        retrain: what is trained anew without the scope's records.
        shared: whether something of the scope was shareable.
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


@serialised
def plan(vault: Vault, scope: Scope, *, blocks: Choice | None = None) -> Plan:
    """Take the inventory of `scope`.

    Args:
        blocks: what becomes of a block that learned a record of a scope that takes records alone.

    Raises:
        NothingMatched: the vault holds nothing of it. UsageError: such a block, and no choice; a choice, and a scope
        that takes blocks whole.
    """
    if blocks is not None and (blocks not in CHOICES or scope.kind in WHOLE):
        raise UsageError("retrain or delete is the choice for blocks that learned erased records; this scope has none.")
    whole = scope.kind in WHOLE
    found = Forgetting(_whole(vault, scope)) if whole else forgetting(vault, *_records(vault, scope), blocks)
    items = tuple(sorted(item for store in vault.stores for item in store.enumerate(found.ids)))
    if not found.ids or not items:
        raise NothingMatched("The vault holds nothing of this scope. `fedmem block list` shows what there is.")
    rows = [[item.store, item.id, item.kind, item.digest] for item in items]
    facts = {"vault": vault.id, "generation": vault.generation, "ids": sorted(found.ids), "items": rows,
             "blocks": blocks, "retrain": sorted(again.run for again in found.retrain)}  # fmt: skip
    counts = Counter(item.kind for item in set(items) if item.store != "block-files")
    shared = scope.kind == "subject" or found.shared
    told = dict(sorted(counts.items()))
    return Plan(digest(facts), scope, found.ids, items, told, blocks, found.deleted, found.retrain, shared)


def _whole(vault: Vault, scope: Scope) -> frozenset[str]:
    if scope.kind == "subject":
        return vault.ids_of(ALL)
    return vault.ids_of(vault.block(scope.name).topic if scope.kind == "block" else scope.name)


def _records(vault: Vault, scope: Scope) -> tuple[frozenset[str], frozenset[str]]:
    """(ids of the records in scope, topics whose block goes whatever it learned)."""
    if scope.kind == "record":
        return frozenset(scope.name.split(",")), frozenset()
    when = datetime.fromisoformat(scope.name).timestamp()
    if scope.kind == "before":
        old = frozenset(block.topic for block in vault.blocks() if block.created < when)
        return vault.records_before(when), old
    kept = vault.retention().items()
    return frozenset().union(*(vault.records_before(when - 86400 * days, topic) for topic, days in kept)), frozenset()


def _named(name: str) -> str:
    if not name:
        raise UsageError("Name the block, topic or record to erase; an empty name means nothing.")
    return name


def _utc(when: datetime) -> str:
    if when.tzinfo is None:
        raise UsageError("A date needs its time zone; take datetime(…, tzinfo=UTC).")
    return when.astimezone(UTC).isoformat()
