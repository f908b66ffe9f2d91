"""Verification: a store that lies is caught, and the deep one finds what no store tells."""

import shutil
from pathlib import Path

import pytest

from fedmem import erasure
from fedmem.erasure import Scope
from fedmem.erasure.verification import EPOCHS, FILES
from fedmem.errors import PartialErasure
from fedmem.vault.crypto import container
from fedmem.vault.store.content_stores import StoredItem


class Copies:
    """A store that keeps a copy of each sealed row in a file of its own, and lies about it."""

    name, order, method, claims = "mirror", 5, "unlinked", frozenset({"receipts-cache"})

    def __init__(self, folder: Path, *, lists: bool) -> None:
        self.folder, self.lists = folder, lists

    def enumerate(self, ids: frozenset[str]) -> list[StoredItem]:
        return [
            StoredItem(self.name, path.name, "copy")
            for path in self.folder.iterdir()
            if path.name in ids and self.lists
        ]

    def erase(self, ids: frozenset[str]) -> None:
        return None

    def scan(self, ids: frozenset[str]) -> list[str]:
        return []


@pytest.fixture
def held(vaults):
    """(vault, folder of copies) with a copy of the block's file kept by a store."""
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    block = vaults.block(vault)
    folder = vault.root / "receipts-cache"
    folder.mkdir()
    shutil.copy(vault.core.block_file(block), folder / block)
    return vault, folder


def erase(vault, topic: str) -> erasure.Outcome:
    planned = erasure.plan(vault, Scope.topic(topic))
    return erasure.execute(vault, planned, planned.digest)


def test_a_store_that_says_it_is_clean_and_still_lists_an_item_is_not_believed(held, vaults) -> None:
    vault, folder = held
    vault.register(Copies(folder, lists=True))
    with pytest.raises(PartialErasure):
        erase(vault, vaults.TOPIC)
    (status,) = erasure.status(vault)
    assert "still listed" in erasure.verify(vault, status.id).remnants["mirror"][0]
    shutil.rmtree(folder)
    folder.mkdir()
    assert [outcome.state for outcome in erasure.resume(vault)] == ["completed"]


def test_a_store_that_lies_twice_is_caught_by_the_deep_one(held, vaults) -> None:
    vault, folder = held
    vault.register(Copies(folder, lists=False))
    outcome = erase(vault, vaults.TOPIC)
    assert erasure.verify(vault, outcome.id).is_clean
    deep = erasure.verify(vault, outcome.id, deep=True)
    assert not deep.is_clean
    assert "receipts-cache" in deep.remnants[FILES][0]


def test_the_copy_of_a_damaged_file_is_known_by_its_digest(vaults) -> None:
    vault = vaults.create()
    path = vault.core.block_file(vaults.block(vault))
    path.write_bytes(path.read_bytes()[:15])
    with pytest.raises(container.ContainerCorrupt):
        container.read_header(path.read_bytes())
    copy = path.read_bytes()
    outcome = erase(vault, vaults.TOPIC)
    assert erasure.verify(vault, outcome.id, deep=True).is_clean
    (vault.root / "receipts" / "left").write_bytes(copy)
    assert "receipts/left" in erasure.verify(vault, outcome.id, deep=True).remnants[FILES][0]


def test_an_earlier_epoch_key_that_came_back_is_found(vaults, home: Path) -> None:
    vault = vaults.create()
    vault.add_records(vaults.records(2))
    (slots,) = (home / "slots").iterdir()
    shutil.copy(slots / "epoch-1", home / "epoch-1")
    vaults.block(vault)
    outcome = erase(vault, vaults.TOPIC)
    assert erasure.verify(vault, outcome.id, deep=True).is_clean
    shutil.copy(home / "epoch-1", slots / "epoch-1")  # somebody restored an old backup of the slots
    assert erasure.verify(vault, outcome.id).is_clean
    assert erasure.verify(vault, outcome.id, deep=True).remnants[EPOCHS] == ["the key of epoch 1 exists"]


def test_a_resumed_erasure_is_verified_deep_and_says_so(vaults, faults) -> None:
    from fedmem.erasure import receipt

    vault = vaults.create()
    vault.add_records(vaults.records(2))
    planned = erasure.plan(vault, Scope.topic(vaults.TOPIC))
    faults.arm("cut", 6)
    with pytest.raises(faults.PowerCut):
        erasure.execute(vault, planned, planned.digest)
    faults.arm("cut", None)
    vault = vaults.reopen(vault)
    (outcome,) = erasure.resume(vault)
    key = (vault.root / "device.pub").read_bytes()
    stores = receipt.verify(outcome.receipt_path.read_bytes(), key)["predicate"]["stores"]
    assert {FILES, EPOCHS} <= {store["name"] for store in stores}
    assert all(store["clean"] for store in stores)


def test_verification_changes_nothing(held, vaults) -> None:
    vault, _ = held
    outcome = erase(vault, vaults.TOPIC)
    before = {path: path.read_bytes() for path in vault.root.rglob("*") if path.is_file() and path.suffix != ".db-shm"}
    erasure.verify(vault, outcome.id, deep=True)
    assert {path: path.read_bytes() for path in before} == before


def test_an_ordinary_erasure_reads_no_file_of_another_block(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmem.storage.files import Files

    vault = vaults.create()
    for number in range(5):
        vaults.block(vault, f"topic-{number}")
    names: list[str] = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, path, **k: names.append(path.stem) or read(self, path, **k))
    monkeypatch.setattr(erasure.residue, "scan", lambda *_: pytest.fail("every file was read"))
    mine = vault.ids_of("topic-2")
    outcome = erase(vault, "topic-2")
    assert {name for name in names if len(name) == 32} <= mine | {outcome.id}
