"""The journal of erasures: one entry for each, and the receipt before the next."""

import pytest

from fedmem import erasure
from fedmem.erasure import Scope, journal, receipt
from fedmem.errors import PartialErasure
from fedmem.vault.vault import Vault
from tests.erasure.test_engine import OTHER, full
from tests.erasure.test_execution import LeakyStore
from tests.erasure.test_large import erase, vault

__all__ = ["vault"]  # fixtures


def test_the_last_receipt_is_found_without_the_ledger(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = erase(vault, "small")

    def refuse(self: object) -> list[object]:
        raise AssertionError("the whole ledger was read")

    monkeypatch.setattr(type(vault.ledger), "events", refuse)
    assert journal.last_receipt(vault) == journal.read(vault, outcome.id).receipt
    later = erase(vault, "large")
    content = receipt.read(later.receipt_path.read_bytes())
    assert content["predicate"]["previous"] == journal.read(vault, outcome.id).receipt


def test_receipts_follow_each_other_in_the_order_in_which_erasures_ended(vaults) -> None:
    vault, store = full(vaults), LeakyStore()
    vault.register(store)
    store.held = set(vault.ids_of(vaults.TOPIC))
    with pytest.raises(PartialErasure):
        erase(vault, vaults.TOPIC)
    second = erase(vault, OTHER)
    store.leaks = False
    (first,) = erasure.resume(vault)
    planned = erasure.plan(vault, Scope.subject())
    third = erasure.execute(vault, planned, planned.digest)
    files = [outcome.receipt_path.read_bytes() for outcome in (second, first, third)]
    assert len(erasure.receipt.verify_chain(files, (vault.root / "device.pub").read_bytes())) == 3
