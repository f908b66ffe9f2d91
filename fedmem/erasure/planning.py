"""What an erasure would destroy, without destroying it.

Invariants
- Planning has no side effect; the same vault and scope give the same digest.
- The digest covers every item of every registered store, and the vault's generation: what is executed is what was
  planned.
- The digest holds no topic name, so a receipt that shows it says nothing about the topic.

    planned = plan(vault, Scope.topic("health"))
    execute(vault, planned, planned.digest)
"""

from collections import Counter
from dataclasses import dataclass, field

from fedmem.canonical import canonical_json, digest
from fedmem.errors import NothingMatched, UsageError
from fedmem.vault.records import ALL, Everything
from fedmem.vault.stores import Item
from fedmem.vault.vault import Vault


@dataclass(frozen=True)
class Scope:
    """What to erase. Make one with `block`, `topic` or `everything`."""

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
    def everything(cls) -> "Scope":
        """All records, blocks, runs and their keys; the ledger stays."""
        return cls("everything")

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
        counts: items by kind: record, block, run, key.
    """

    digest: str
    scope: Scope
    ids: frozenset[str] = field(repr=False)
    items: tuple[Item, ...] = field(repr=False)
    counts: dict[str, int]


def plan(vault: Vault, scope: Scope) -> Plan:
    """Take the inventory of `scope`. Raises NothingMatched where the vault holds nothing of it."""
    ids = vault.ids_of(_topic(vault, scope))
    items = tuple(sorted(item for store in vault.stores for item in store.enumerate(ids)))
    if not ids or not items:
        raise NothingMatched("The vault holds nothing of this scope. `fedmem block list` shows what there is.")
    facts = {"vault": vault.id, "generation": vault.generation, "ids": sorted(ids)}
    rows = [[item.store, item.id, item.kind, item.digest] for item in items]
    counts = Counter(item.kind for item in set(items) if item.store != "block-files")
    return Plan(digest({**facts, "items": rows}), scope, ids, items, dict(sorted(counts.items())))


def _topic(vault: Vault, scope: Scope) -> str | Everything:
    if scope.kind == "everything":
        return ALL
    return vault.block(scope.name).topic if scope.kind == "block" else scope.name


def _named(name: str) -> str:
    if not name:
        raise UsageError("Name the block or topic to erase; an empty name means nothing.")
    return name
