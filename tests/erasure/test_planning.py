"""Plans: an inventory without side effect, named by a digest that changes when the vault does."""

from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import NothingMatched, UsageError


def test_a_plan_counts_what_a_topic_holds_and_changes_nothing(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(3))
    vault.add_records(vaults.records(2, topic=None))
    vaults.block(vault)
    vaults.block(vault)
    before = {path: path.read_bytes() for path in vault.root.rglob("*") if path.is_file() and path.suffix != ".db-shm"}
    planned = erasure.plan(vault, Scope.block(vaults.TOPIC))
    assert planned.counts == {"block": 2, "key": 7, "record": 3, "run": 2}
    assert {path: path.read_bytes() for path in before} == before
    assert erasure.status(vault) == []


def test_block_scope_by_id_or_topic_is_the_topic(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1))
    block = vaults.block(vault)
    scopes = (Scope.block(block), Scope.block(vaults.TOPIC), Scope.topic(vaults.TOPIC))
    assert len({erasure.plan(vault, scope).digest for scope in scopes}) == 1


def test_the_digest_is_stable_and_follows_the_vault(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    first = erasure.plan(vault, Scope.topic(vaults.TOPIC)).digest
    vault = vaults.reopen(vault)
    assert erasure.plan(vault, Scope.topic(vaults.TOPIC)).digest == first
    vault.add_records(vaults.records(1))
    assert erasure.plan(vault, Scope.topic(vaults.TOPIC)).digest != first


def test_open_runs_and_records_without_a_block_are_in_scope(vaults) -> None:
    vault = vaults.create()
    vault.begin_run(vaults.TOPIC, "r", {}, "d", [], {})
    assert erasure.plan(vault, Scope.topic(vaults.TOPIC)).counts == {"key": 2, "run": 1}
    with pytest.raises(NothingMatched):
        erasure.plan(vault, Scope.block(vaults.TOPIC))


def test_nothing_matched(vaults) -> None:
    vault = vaults.create()
    for scope in (Scope.block("absent"), Scope.topic("absent"), Scope.subject()):
        with pytest.raises(NothingMatched) as caught:
            erasure.plan(vault, scope)
        assert caught.value.exit_code == 3
    for make in (Scope.block, Scope.topic):
        with pytest.raises(UsageError):
            make("")


def test_a_plan_shows_no_topic(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1))
    assert vaults.TOPIC not in repr(erasure.plan(vault, Scope.topic(vaults.TOPIC)))


def test_a_damaged_block_can_still_be_planned_and_erased(vaults) -> None:
    vault = vaults.create()
    path: Path = vault.core.block_file(vaults.block(vault))
    path.write_bytes(path.read_bytes()[:50])
    planned = erasure.plan(vault, Scope.block(vaults.TOPIC))
    assert erasure.execute(vault, planned, planned.digest).state == "completed"
