"""Which ids belong to which topic: an index in the sealed facts of the key table.

Invariants
- An id enters the index in the same table write as its key and leaves it with its key: the index never lies about
  what has a key.
- Topic names lie in the sealed table and in sealed cells only, and leave the table with the last id of the topic (I4).
- Finding a topic's ids opens no item: the cost is that of the table, whatever the number of blocks.

A retention rule (how many days a topic's records are kept) is an id of its topic like any other, so that erasing the
topic erases the rule; erasing records leaves it.

    rewrite(core.table, add={item: key}, topics={item: "health"})
    ids_of(core.table, "health")
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fedmem.errors import UsageError
from fedmem.storage.ids import new_id
from fedmem.vault.crypto.key_table import KeyTable


class Everything:
    """The type of `ALL`."""


ALL = Everything()
FACTS: dict[str, Any] = {"topics": {}, "retention": {}}
"""What a new vault's sealed facts begin with."""


def ids_of(table: KeyTable, topic: str | Everything | None) -> frozenset[str]:
    """Ids of a topic, of the shareable records (None), or of `ALL`."""
    if isinstance(topic, str):
        rules = (item for item, (name, _) in table.facts["retention"].items() if name == topic)
        return frozenset([*table.facts["topics"].get(topic, ()), *rules])
    everything = table.keys.keys() - {table.facts["ledger"]}
    if topic is None:
        return frozenset(everything.difference(*table.facts["topics"].values()))
    return frozenset(everything | table.facts["retention"].keys())


def rewrite(
    table: KeyTable,
    *,
    add: Mapping[str, bytes] | None = None,
    topics: Mapping[str, str | None] | None = None,
    without: Iterable[str] = (),
    rotate: bool = False,
    erasure: bool = False,
) -> None:
    """`KeyTable.rewrite`, with the index kept in step; `topics` names the topic of each id of `add`.

    Raises StorageError, KeystoreError. Table and index then again equal what is on disk.
    """
    gone = frozenset(without)
    index = _without(table.facts["topics"], gone) if gone else dict(table.facts["topics"])
    for item, topic in (topics or {}).items():
        if topic is not None:
            index[topic] = [*index.get(topic, ()), item]
    rules = {item: rule for item, rule in table.facts["retention"].items() if item not in gone}
    facts = {**table.facts, "topics": index, "retention": rules}
    table.rewrite(add=add, without=gone, rotate=rotate, erasure=erasure, facts=facts)


def retention(table: KeyTable) -> dict[str, float]:
    """Topic -> days for which its records are kept; topics without a rule are kept until somebody erases them."""
    return {str(topic): float(days) for topic, days in table.facts["retention"].values()}


def keep(table: KeyTable, topic: str, days: float | None) -> None:
    """Set how long the records of a topic are kept; None removes the rule. Raises UsageError, StorageError."""
    if not topic or (days is not None and not 0 < days < 36500):
        raise UsageError("Name a topic, and a number of days above 0 and below 36500.")
    rules = {item: rule for item, rule in table.facts["retention"].items() if rule[0] != topic}
    if days is not None:
        rules[new_id()] = [topic, days]
    # Removing a rule destroys nothing that an old table would give away but the rule itself.
    table.rewrite(facts={**table.facts, "retention": rules})


def _without(index: Mapping[str, list[str]], gone: frozenset[str]) -> dict[str, list[str]]:
    left = {t: i if gone.isdisjoint(i) else [item for item in i if item not in gone] for t, i in index.items()}
    return {topic: ids for topic, ids in left.items() if ids}
