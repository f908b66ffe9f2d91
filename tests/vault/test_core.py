"""Several programs write to one vault, and each sees what the others wrote."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.errors import PartialErasure
from fedmem.vault.crypto import rekey
from fedmem.vault.crypto.key_table import LOG_LIMIT
from fedmem.vault.store.core import KeysMoved, StaleReader
from fedmem.vault.vault import ALL, NewRecord, Vault


def note(text: str, topic: str = "garden") -> NewRecord:
    return NewRecord(text, topic, (1,), np.array([len(text), 1], np.float32), "r")


def texts(vault: Vault) -> list[str]:
    return sorted(record.text for record in vault.records(ALL))


def test_each_sees_what_the_other_wrote(vaults: Any) -> None:
    first, second = vaults.create(), vaults.open()
    reader = vaults.open(write=False)
    first.add_records([note("one")])
    second.add_records([note("two")])
    first.add_records([note("three")])
    for vault in (first, second, reader):
        assert texts(vault) == ["one", "three", "two"]
        assert [hit.text for hit, _ in vault.search(np.array([1, 0], np.float32), 1)] == ["three"]
        assert vault.ids_of("garden") == first.ids_of(ALL)
    run = second.begin_run("garden", "r", {}, "d", [], {})
    assert first.begin_run("garden", "r", {}, "d", [], {}).id == run.id
    first.finish_run(run, "garden", "r", b"rows", 1, 1, 1)
    assert reader.block_rows(run.block_id) == second.block_rows(run.block_id) == b"rows"
    assert first.ledger.verify() == second.ledger.verify()


def test_a_table_that_was_written_anew_is_read_by_the_others(vaults: Any) -> None:
    first, second = vaults.create(), vaults.open()
    for number in range(LOG_LIMIT + 5):
        first.add_records([note(str(number))])
    assert len(texts(second)) == LOG_LIMIT + 5
    second.add_records([note("last")])
    assert len(texts(vaults.reopen(first))) == LOG_LIMIT + 6


def test_a_writer_goes_on_after_an_erasure_by_another_one(vaults: Any) -> None:
    first, second = vaults.create(), vaults.open()
    first.add_records([note("stays"), note("goes", "boat")])
    block = vaults.block(second, "boat")
    assert second.block_rows(block)
    planned = erasure.plan(first, Scope.topic("boat"))
    erasure.execute(first, planned, planned.digest)
    assert texts(second) == ["stays"]
    assert second.blocks() == []
    second.add_records([note("new")])
    assert texts(first) == ["new", "stays"]


def test_what_was_erased_takes_no_place_in_a_search(vaults: Any) -> None:
    vault = vaults.create()
    vault.add_records([*(note("near" * 9, "boat") for _ in range(5)), note("far")])
    query = np.array([1, 0], np.float32)
    assert [record.text for record, _ in vault.search(query, 5)] == ["near" * 9] * 5
    planned = erasure.plan(vault, Scope.topic("boat"))
    erasure.execute(vault, planned, planned.digest)
    assert [record.text for record, _ in vault.search(query, 5)] == ["far"]


def test_content_in_use_ends_with_the_erasure(vaults: Any) -> None:
    first, second = vaults.create(), vaults.open()
    first.add_records([note("goes")])
    with second.core.in_use():
        generation, lease = second.generation, second.core.lease
        planned = erasure.plan(first, Scope.topic("garden"))
        with pytest.raises(PartialErasure):  # until the content is given up
            erasure.execute(first, planned, planned.digest)
        assert second.generation == generation + 1
        second.add_records([note("new")])
        assert lease.is_held
    assert not lease.is_held
    assert second.core.lease.is_held
    assert [outcome.state for outcome in erasure.resume(first)] == ["completed"]


def test_moved_keys_are_named(vaults: Any) -> None:
    vault = vaults.create(keystore="passphrase", ask=lambda: "tulip")
    other = vaults.open(ask=lambda: "tulip")
    rekey.change_passphrase(vault.core, lambda: "rose")
    for use in (lambda: other.records(ALL), lambda: other.add_records([note("one")])):
        with pytest.raises(KeysMoved, match="Open the vault again"):
            use()
    vault.add_records([note("one")])
    assert texts(vaults.open(ask=lambda: "rose")) == ["one"]


def add_many(root: Path, name: str) -> None:
    """Add from four threads, each record by itself, and say what was acknowledged."""
    with Vault.open(root, subject="alice") as vault, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: vault.add_records([note(f"{name}-{number}")]), range(12)))


def test_processes_and_threads_add_at_once(vaults: Any) -> None:
    vault = vaults.create()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(vault.root, str(n))) for n in range(3)]
    for worker in workers:
        worker.start()
    add_many(vault.root, "parent")
    for worker in workers:
        worker.join()
    expected = sorted(f"{name}-{number}" for name in ("0", "1", "2", "parent") for number in range(12))
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert texts(vault) == texts(vaults.reopen(vault)) == expected


def test_a_reader_has_to_open_again(vaults: Any) -> None:
    vault = vaults.create()
    vault.add_records([note("goes")])
    reader = vaults.open(write=False)
    planned = erasure.plan(vault, Scope.topic("garden"))
    erasure.execute(vault, planned, planned.digest)
    with pytest.raises(StaleReader):
        reader.records(ALL)
    assert reader.core.table.keys == {}
