"""Never more nodes than the population, and nobody is displaced by a newer id."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fedmem.coordinator.roster import Roster


def test_a_returning_device_waits_until_its_old_id_is_gone() -> None:
    roster = Roster(4)
    assert roster.choose([11, 12, 13, 14]) == [11, 12, 13, 14]
    assert roster.choose([1, 11, 12, 13, 14]) == [11, 12, 13, 14]
    assert roster.choose([1, 12, 13, 14]) == [1, 12, 13, 14]


def test_many_strangers_displace_nobody() -> None:
    roster = Roster(3)
    roster.choose([500, 501])
    assert roster.choose([*range(400), 500, 501]) == [0, 500, 501]


def test_duplicates_and_an_empty_look_are_harmless() -> None:
    roster = Roster(2)
    assert roster.choose([7, 7, 7]) == [7]
    assert roster.choose([]) == []


def test_a_node_that_comes_back_under_a_new_id_does_not_end_the_run(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = toy()
    grid = made.grid()
    seen = list[int]()

    def nodes() -> Iterable[int]:
        seen.append(1)
        return [1000, 1001, 1002, 1003] if len(seen) == 1 else [7, 1000, 1001, 1002, 1003]

    monkeypatch.setattr(grid, "get_node_ids", nodes)
    traffic, coordinator, _ = made.run(until=3, grid=grid)
    assert [row.counted for row in traffic] == [4, 4, 4]
    assert coordinator.finished_rounds == 3
