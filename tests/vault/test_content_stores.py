"""Content stores: one contract, every implementation, and an exact count of what a vault may hold."""

import pytest

from fedmem.errors import Refused
from fedmem.storage.files import Files
from fedmem.vault.store import content_stores as stores
from fedmem.vault.store.content_stores import BUILT_IN, NO_CONTENT, ContentStore, unclaimed_names
from fedmem.vault.store.core import Core

AT_REST = ["key-table", "block-files", "database", "checkpoints"]
NAMES = [*AT_REST, "readers", "copies"]


@pytest.fixture(params=range(len(AT_REST)), ids=AT_REST)
def held(request: pytest.FixtureRequest, vaults):
    """(store, ids in scope, vault) of a vault with two topics."""
    vault = vaults.create()
    for topic in (vaults.TOPIC, "other"):
        vault.add_records(vaults.records(2, topic=topic))
        vaults.block(vault, topic)
        run = vault.begin_run(topic, "release-1", {"steps": 2}, "digest", [], {"sigma": 1.0})
        vault.save_checkpoint(run, 1, b"moments")
    return vault.stores[request.param], vault.ids_of(vaults.TOPIC), vault


class TestContract:
    def test_it_enumerates_what_it_holds_of_the_ids_and_no_more(self, held) -> None:
        store, ids, _ = held
        items = store.enumerate(ids)
        assert items
        assert {item.id for item in items} <= ids
        assert {item.store for item in items} == {store.name}
        assert store.enumerate(frozenset()) == []

    def test_enumerating_twice_gives_the_same(self, held) -> None:
        store, ids, _ = held
        assert store.enumerate(ids) == store.enumerate(ids)

    def test_the_scan_sees_what_is_there_and_not_what_was_erased(self, held) -> None:
        store, ids, vault = held
        assert store.scan(ids)
        others = len(store.enumerate(vault.ids_of("other")))
        with vault.core.turn():
            store.erase(ids)
        assert store.scan(ids) == []
        assert store.enumerate(ids) == []
        assert len(store.enumerate(vault.ids_of("other"))) == (others if store.name != "block-files" else 1)

    def test_erasing_twice_is_fine(self, held) -> None:
        store, ids, vault = held
        with vault.core.turn():
            store.erase(ids)
            store.erase(ids)
        assert store.scan(ids) == []

    def test_what_it_says_names_no_content(self, held, vaults) -> None:
        store, ids, _ = held
        said = repr(store.enumerate(ids)) + repr(store.scan(ids)) + store.method
        assert vaults.TOPIC not in said
        assert vaults.CANARY not in said
        assert "wiped" not in said


def test_the_key_table_comes_first(vaults) -> None:
    assert [store.name for store in vaults.create().stores] == NAMES
    assert len(BUILT_IN) == len(NAMES) - 2  # `checkpoints` and `copies` come on top: they are built on the others


class Cache:
    """A store in memory that keeps the contract."""

    name, order, method, claims = "cache", 9, "dropped from memory", frozenset[str]()

    def enumerate(self, ids: frozenset[str]) -> list:
        return []

    def erase(self, ids: frozenset[str]) -> None:
        return None

    def scan(self, ids: frozenset[str]) -> list[str]:
        return []


def test_a_store_that_keeps_the_contract_is_registered(vaults) -> None:
    vault, store = vaults.create(), Cache()
    vault.register(store)
    assert vault.stores[-1] is store
    with pytest.raises(Refused, match="name of its own"):
        vault.register(Cache())


@pytest.mark.parametrize("part", ["enumerate", "erase", "scan", "name", "order", "method", "claims"])
def test_a_store_without_a_part_of_the_contract_is_not(vaults, part: str) -> None:
    vault, store = vaults.create(), Cache()
    setattr(store, part, None)
    with pytest.raises(Refused) as caught:
        vault.register(store)
    assert caught.value.exit_code == 4
    assert [known.name for known in vault.stores] == NAMES


def test_a_vault_does_not_open_with_a_store_that_cannot_erase(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    vaults.create().close()
    with monkeypatch.context() as patch:
        patch.setattr(stores.DatabaseStore, "erase", None)
        with pytest.raises(Refused):
            vaults.open()
    vaults.open()


def test_finding_what_is_in_scope_opens_nothing_beside_it(vaults, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = vaults.create()
    for number in range(6):
        vaults.block(vault, f"topic-{number}")
    opened: list[str] = []
    read, cell = type(vault.core.files).read, Core.open_cell
    monkeypatch.setattr(
        Core, "open_cell", lambda self, kind, item, *a: opened.append(item) or cell(self, kind, item, *a)
    )
    monkeypatch.setattr(Files, "read", lambda self, path, **k: opened.append(path.stem) or read(self, path, **k))
    ids = vault.ids_of("topic-3")
    with vault.core.turn():
        for store in vault.stores:
            store.enumerate(ids)
            store.erase(ids)
            assert store.scan(ids) == []
    assert {name for name in opened if not name.startswith("epoch-")} <= ids | {"table", "database"}


def test_each_file_and_table_has_one_owner(vaults) -> None:
    vault = vaults.create()
    vaults.block(vault)
    present = {path.name for path in vault.root.iterdir()} | {f"table:{name}" for name in vault.core.database.tables()}
    assert unclaimed_names(vault.stores, present) == []
    claims: list[str] = [*NO_CONTENT, *(claim for store in vault.stores for claim in store.claims)]
    assert len(claims) == len(set(claims))
    without: list[ContentStore] = [store for store in vault.stores if store.name != "database"]
    assert "table:records" in unclaimed_names(without, present)
