"""The index of topics: the ids that belong to each topic, in the sealed facts of the key table.

Invariants
- An id enters the index in the same table write as its key and leaves it with its key. So index and keys always agree.
- Topic names are in the sealed table and in sealed cells only, and leave the table with the last id of the topic (I4).
- Listing a topic's ids opens no item: the cost depends on the table, not on the number of blocks.

A retention rule (how many days a topic's records are kept) is an id of its topic like any other: erasing the topic
erases the rule, and erasing records leaves it.

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
"""The sealed facts of a new vault."""


def ids_of(table: KeyTable, topic: str | Everything | None) -> frozenset[str]:
    """Return the ids of a topic, of the shareable records (None), or of `ALL`.

    Args:
        table: the key table.
        topic: name of a topic; None for the shareable records; `ALL` for all ids.

    Returns:
        Ids with a key, and ids of retention rules; empty for an unknown topic.
    """
    if isinstance(topic, str):
        rules = (item for item, (name, _) in table.facts["retention"].items() if name == topic)
        return frozenset([*table.facts["topics"].get(topic, ()), *rules])
    keyed = table.keys.keys() - {table.facts["ledger"]}
    if topic is None:
        return frozenset(keyed.difference(*table.facts["topics"].values()))
    return frozenset(keyed | table.facts["retention"].keys())


def rewrite(
    table: KeyTable,
    *,
    add: Mapping[str, bytes] | None = None,
    topics: Mapping[str, str | None] | None = None,
    without: Iterable[str] = (),
    rotate: bool = False,
    erasure: bool = False,
) -> None:
    """Change the key table and its index of topics together; see `KeyTable.append` and `KeyTable.rewrite`.

    New keys alone are appended. Any other change writes the whole table.

    Args:
        table: the key table.
        add: id -> new data key.
        topics: id -> topic, for the ids of `add`; None for a shareable record.
        without: ids to remove.
        rotate: True for a new epoch key.
        erasure: True if this write is an erasure; it starts a new generation.

    Raises:
        StorageError, KeystoreError: table and index in memory again equal the file.
    """
    removed = frozenset(without)
    if not removed and not rotate:
        table.append(add or {}, _by_topic(topics or {}))
        return
    index = _without(table.facts["topics"], removed) if removed else dict(table.facts["topics"])
    for topic, ids in _by_topic(topics or {}).items():
        index[topic] = [*index.get(topic, ()), *ids]
    rules = {item: rule for item, rule in table.facts["retention"].items() if item not in removed}
    facts = {**table.facts, "topics": index, "retention": rules}
    table.rewrite(add=add, without=removed, rotate=rotate, erasure=erasure, facts=facts)


def retention(table: KeyTable) -> dict[str, float]:
    """Return for each topic the days for which its records are kept. A topic without a rule is left out.

    Args:
        table: the key table.

    Returns:
        Topic -> days, above 0 and below 36500.
    """
    return {str(topic): float(days) for topic, days in table.facts["retention"].values()}


def keep(table: KeyTable, topic: str, days: float | None) -> None:
    """Set for how many days the records of a topic are kept.

    Args:
        table: the key table.
        topic: name of the topic, not empty.
        days: above 0 and below 36500; None removes the rule.

    Raises:
        UsageError: another topic or number of days.
        StorageError: the rule is as it was.
    """
    if not topic or (days is not None and not 0 < days < 36500):
        raise UsageError("Name a topic, and a number of days above 0 and below 36500.")
    rules = {item: rule for item, rule in table.facts["retention"].items() if rule[0] != topic}
    if days is not None:
        rules[new_id()] = [topic, days]
    # No new epoch is needed: an old table would reveal only the removed rule.
    table.rewrite(facts={**table.facts, "retention": rules})


def _by_topic(topics: Mapping[str, str | None]) -> dict[str, list[str]]:
    ids_of_topic = dict[str, list[str]]()
    for item, topic in topics.items():
        if topic is not None:
            ids_of_topic.setdefault(topic, []).append(item)
    return ids_of_topic


def _without(index: Mapping[str, list[str]], removed: frozenset[str]) -> dict[str, list[str]]:
    remaining = {
        topic: ids if removed.isdisjoint(ids) else [item for item in ids if item not in removed]
        for topic, ids in index.items()
    }
    return {topic: ids for topic, ids in remaining.items() if ids}
