"""Records: what goes in comes out, in order, and nothing bad goes in."""

import numpy as np
import pytest

from fedmem.errors import (
    UsageError,
    VersionMismatch,
)
from fedmem.vault.vault import ALL, NewRecord
from tests.vault.test_vault import tree


def test_records_come_back_in_order_after_reopening(vaults) -> None:
    vault = vaults.create()
    given = vaults.records(5) + vaults.records(2, topic=None)
    ids = vault.add_records(given)
    vault = vaults.reopen(vault)
    found = vault.records(ALL)
    assert [record.id for record in found] == ids
    for record, new in zip(found, given, strict=True):
        assert (record.text, record.topic, record.path, record.release) == (new.text, new.topic, new.path, new.release)
        np.testing.assert_array_equal(record.vector, new.vector)
    assert len(vault.records(vaults.TOPIC)) == 5
    assert len(vault.records(None)) == 2
    assert vault.records("another topic") == []


def test_search_equals_brute_force_by_hand(vaults) -> None:
    vault = vaults.create()
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    vault.add_records([NewRecord(str(i), None, (), vector, "r") for i, vector in enumerate(vectors)])
    found = vault.search(np.array([1, 0], np.float32), 2)
    assert [record.text for record, _ in found] == ["0", "2"]
    assert found[1][1] == pytest.approx(0.6)
    assert vault.search(np.array([1, 0], np.float32), 0) == []


def test_vectors_of_another_embedder_are_refused_and_change_nothing(vaults) -> None:
    vault = vaults.create()
    narrow, wide = (NewRecord("secret", None, (), np.ones(width, np.float32), "r") for width in (2, 3))
    with pytest.raises(VersionMismatch):
        vault.add_records([narrow, wide])  # a vault without records: the batch itself is of two widths
    ids = vault.add_records([narrow])
    vault = vaults.reopen(vault)
    for fault in (lambda: vault.add_records([wide]), lambda: vault.search(np.ones(3, np.float32), 1)):
        with pytest.raises(VersionMismatch, match="another embedder") as caught:
            fault()
        assert "secret" not in str(caught.value)
    assert [record.id for record in vault.records(ALL)] == ids
    assert len(vault.search(np.ones(2, np.float32), 5)) == 1


def test_bad_records_are_refused_without_quoting_them(vaults) -> None:
    vault = vaults.create()
    before = tree(vault.root)
    bad_text = NewRecord("secret \ud800", "t", (), np.zeros(2, np.float32), "r")
    bad_vector = NewRecord("secret", "t", (), np.array([np.nan], np.float32), "r")
    for bad in (bad_text, bad_vector):
        with pytest.raises(UsageError) as caught:
            vault.add_records([*vaults.records(1), bad])
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None
    assert tree(vault.root) == before
    assert vault.add_records([]) == []


def test_repr_of_records_and_runs_shows_no_content(vaults) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(1))
    run = vault.begin_run(vaults.TOPIC, "release-1", {}, "d", [], {"sigma": 1.0})
    shown = repr((vault.records(ALL), vaults.records(1), run, vault.blocks()))
    assert vaults.CANARY not in shown
    assert vaults.TOPIC not in shown
    assert repr(run.key) not in shown
