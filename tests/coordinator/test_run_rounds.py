"""Rounds run until their number is reached, and end with a typed error where devices are missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmem.coordinator.journal import Journal
from fedmem.coordinator.run_rounds import ABORTS, Patience, run_rounds
from fedmem.errors import RemoteError
from fedmem.federation.rounds import RoundAborted
from fedmem.sim.inproc_grid import InProcessGrid
from tests.federation.nemesis import NODES, Fleet, bytes_of, ledger_rounds


def test_a_federation_without_devices_ends_with_a_sentence(toy: Callable[..., Any]) -> None:
    made = toy()
    with pytest.raises(RemoteError, match="Start the others"):
        run_rounds(
            InProcessGrid({}), made.coordinator(), Journal(made.root), until=1, patience=Patience(connect=0, poll=0)
        )


NOISY = {"noise_multiplier": 1.0, "sampling_rate": 0.7}


def test_a_finished_run_is_not_run_again(toy: Callable[..., Any]) -> None:
    made = toy(**NOISY)
    first, _, _ = made.run(until=2)
    grid = made.grid()
    again, coordinator, _ = made.run(until=2, grid=grid)
    assert again == first
    assert coordinator.finished_rounds == 2
    assert grid.transcript.entries == []


def test_a_cohort_below_the_minimum_aborts_the_round_and_the_run_goes_on(tmp_path: Path) -> None:
    gone = {(2, node): "garbage" for node in list(NODES)[:5]}
    got, journal = Fleet(tmp_path / "got", gone, settings={"minimum": 4}).run()
    assert [(row.counted, row.aborted) for row in journal.traffic()] == [(8, False), (3, True), (8, False)]
    # Spent is spent: the aborted round is in the ledger, and its number is used up.
    assert ledger_rounds(journal) == [1, 2, 3]
    # Nothing of it is in the result: silence in round 2 comes to the same.
    silent = Fleet(tmp_path / "silent", {(2, node): "death" for node in NODES}, settings={"minimum": 4})
    want, _ = silent.run()
    assert bytes_of(got) == bytes_of(want)
    assert (journal.params_at(2)["w"] == journal.params_at(1)["w"]).all()


def test_a_federation_without_a_result_for_three_rounds_ends_with_a_typed_error(tmp_path: Path) -> None:
    script = {(number, node): "hang" for number in range(1, 9) for node in NODES}
    made = Fleet(tmp_path, script)
    with pytest.raises(RoundAborted):
        made.run(until=9)
    journal = Journal(tmp_path)
    assert [row.aborted for row in journal.traffic()] == [True] * ABORTS
    assert ledger_rounds(journal) == [1, 2, 3]
    # Called again it goes on with the next number, and ends by the same rule.
    with pytest.raises(RoundAborted):
        made.run(until=9)
    assert ledger_rounds(Journal(tmp_path)) == [1, 2, 3, 4, 5, 6]


def test_too_few_connected_devices_open_no_round(tmp_path: Path) -> None:
    made = Fleet(tmp_path, {}, settings={"minimum": 9}, **NOISY)
    with pytest.raises(RemoteError, match="connected"):
        made.run()
    assert ledger_rounds(Journal(tmp_path)) == []
    assert made.grid.asked == []
