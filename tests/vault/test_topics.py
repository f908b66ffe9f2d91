"""The index of topics: in step with the keys at every moment, sealed, and gone with its topic."""

import contextlib
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.errors import StorageError, UsageError
from fedmem.vault.store import topics
from fedmem.vault.vault import ALL

OTHER = "topic-money"


def by_opening(vault) -> dict[str | None, set[str]]:
    """The slow obvious way: open every item, and ask it for its topic."""
    found: dict[str | None, set[str]] = {}
    for record in vault.records(ALL):
        found.setdefault(record.topic, set()).add(record.id)
    for block in vault.blocks():
        found.setdefault(block.topic, set()).add(block.id)
    for run in vault.runs_by_id(vault.core.table.keys):
        mine = found.setdefault(run.topic, set())
        mine |= {run.id} | ({run.key_id} & vault.core.table.keys.keys())
    return found


def check(vault) -> None:
    for topic in (vault.records(ALL)[0].topic if vault.records(ALL) else None, "topic-health-9c1e", OTHER, None):
        assert vault.ids_of(topic) == by_opening(vault).get(topic, set())
    assert vault.ids_of(ALL) == set().union(*by_opening(vault).values())
    assert vault.ids_of("absent") == frozenset()


def test_the_index_is_what_opening_everything_gives(vaults) -> None:
    vault = vaults.create()
    check(vault)
    vault.add_records(vaults.records(3) + vaults.records(2, topic=OTHER) + vaults.records(2, topic=None))
    check(vault)
    vaults.block(vault)
    vaults.block(vault, OTHER)
    run = vault.begin_run(vaults.TOPIC, "r", {}, "d", [], {})
    check(vault)
    vault.begin_run(vaults.TOPIC, "r", {}, "another", [], {})  # the first fails, its key goes
    check(vault)
    planned = erasure.plan(vault, erasure.Scope.topic(vaults.TOPIC))
    erasure.execute(vault, planned, planned.digest)
    check(vaults.reopen(vault))
    assert run.id not in vaults.opened[-1].ids_of(ALL)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("kind", ["cut", "full"])
def test_it_is_in_step_after_a_write_that_failed(vaults, faults, kind: str, at: int) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    faults.arm(kind, at)
    with contextlib.suppress(StorageError, faults.PowerCut):
        vault.add_records(vaults.records(3))
    faults.arm(kind, None)
    if kind == "full":
        check(vault)
    check(vaults.reopen(vault))


def test_a_name_leaves_the_sealed_facts_with_its_last_id(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    vault.keep(vaults.TOPIC, 3)
    assert vaults.TOPIC in repr(vault.core.table.facts)
    planned = erasure.plan(vault, erasure.Scope.topic(vaults.TOPIC))
    assert planned.counts["retention"] == 1
    erasure.execute(vault, planned, planned.digest)
    assert vaults.TOPIC not in repr(vaults.reopen(vault).core.table.facts)


def test_a_rule_alone_can_be_erased(vaults) -> None:
    vault = vaults.create()
    vault.keep(vaults.TOPIC, 3)
    planned = erasure.plan(vault, erasure.Scope.topic(vaults.TOPIC))
    assert planned.counts == {"retention": 1}
    assert erasure.execute(vault, planned, planned.digest).state == "completed"
    assert vault.retention() == {}


def test_retention_is_set_changed_and_removed(vaults) -> None:
    vault = vaults.create()
    vault.keep("a", 30)
    vault.keep("b", 0.5)
    vault.keep("a", 7)
    assert vaults.reopen(vault).retention() == {"a": 7.0, "b": 0.5}
    vaults.opened[-1].keep("a", None)
    assert vaults.opened[-1].retention() == {"b": 0.5}


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf"), 1e9])
def test_retention_that_means_nothing(vaults, days: float) -> None:
    vault = vaults.create()
    with pytest.raises(UsageError):
        vault.keep("a", days)
    with pytest.raises(UsageError):
        vault.keep("", 3)
    assert vault.retention() == {}


def test_a_failed_write_leaves_index_and_keys_as_they_were(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    before = dict(vault.core.table.facts)

    def fail(*_: object, **__: object) -> None:
        raise StorageError("The disk refused.")

    with monkeypatch.context() as patch:
        patch.setattr(type(vault.core.files), "read", fail)  # not even reading works
        patch.setattr(type(vault.core.files), "replace", fail)
        with pytest.raises(StorageError):
            topics.rewrite(vault.core.table, without=vault.ids_of(vaults.TOPIC))
    assert vault.core.table.facts == before
    assert len(vault.ids_of(vaults.TOPIC)) == 2


def test_a_vault_of_an_earlier_version_is_taken_up_by_its_first_writer(vaults) -> None:
    from fedmem.errors import VersionMismatch

    vault = vaults.create()
    vault.add_records(vaults.records(3) + vaults.records(2, topic=OTHER) + vaults.records(2, topic=None))
    vaults.block(vault)
    vault.begin_run(vaults.TOPIC, "r", {}, "d", [], {})
    expected = {topic: vault.ids_of(topic) for topic in (vaults.TOPIC, OTHER, None)}
    facts = {name: fact for name, fact in vault.core.table.facts.items() if name not in topics.FACTS}
    vault.core.table.rewrite(facts=facts)  # what it wrote before there was an index
    vault.close()
    with pytest.raises(VersionMismatch, match="for writing") as caught:
        vaults.open(write=False)
    assert caught.value.exit_code == 9
    for _ in range(2):
        opened = vaults.open()
        assert {topic: opened.ids_of(topic) for topic in expected} == expected
        opened.close()


def test_topic_names_are_in_no_file(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    vault.keep(vaults.TOPIC, 3)
    files: list[Path] = [path for path in vaults.base.rglob("*") if path.is_file()]
    assert not [path for path in files if vaults.TOPIC.encode() in path.read_bytes()]
