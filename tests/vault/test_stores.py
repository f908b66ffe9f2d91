"""Content stores: one contract, every implementation, and an exact count of what a vault may hold."""

import pytest

from fedmem.vault.stores import BUILT_IN, NO_CONTENT, ContentStore, unclaimed

NAMES = ["key-table", "block-files", "database"]


@pytest.fixture(params=range(len(BUILT_IN)), ids=NAMES)
def held(request: pytest.FixtureRequest, vaults):
    """(store, ids in scope, vault) of a vault with two topics."""
    vault = vaults.create()
    for topic in (vaults.TOPIC, "other"):
        vault.add_records(vaults.records(2, topic=topic))
        vaults.block(vault, topic)
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
        store.erase(ids)
        assert store.scan(ids) == []
        assert store.enumerate(ids) == []
        assert len(store.enumerate(vault.ids_of("other"))) == (others if store.name != "block-files" else 1)

    def test_erasing_twice_is_fine(self, held) -> None:
        store, ids, _ = held
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


def test_each_file_and_table_has_one_owner(vaults) -> None:
    vault = vaults.create()
    vaults.block(vault)
    present = {path.name for path in vault.root.iterdir()} | {f"table:{name}" for name in vault.core.database.tables()}
    assert unclaimed(vault.stores, present) == []
    claims: list[str] = [*NO_CONTENT, *(claim for store in vault.stores for claim in store.claims)]
    assert len(claims) == len(set(claims))
    without: list[ContentStore] = [store for store in vault.stores if store.name != "database"]
    assert "table:records" in unclaimed(without, present)
