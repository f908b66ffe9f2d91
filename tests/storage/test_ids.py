"""Ids are random: 32 hex digits, none twice, and the same in no forked child."""

import re

from fedmem.storage.ids import new_id
from tests.storage.forked import in_child


def test_ids_are_32_hex_digits_and_none_comes_twice() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", item) for item in ids)


def test_children_and_parent_draw_other_ids() -> None:
    assert len({in_child(new_id)[0], in_child(new_id)[0], new_id()}) == 3
