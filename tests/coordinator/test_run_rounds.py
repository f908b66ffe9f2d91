"""Rounds run until their number is reached, and end with a typed error where devices are missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

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


def test_two_aborted_rounds_are_no_success_also_when_the_run_is_repeated(tmp_path: Path) -> None:
    made = Fleet(tmp_path, {(number, node): "garbage" for number in (1, 2) for node in NODES})
    for _ in range(2):
        with pytest.raises(RoundAborted, match="Round 2, the last one") as ended:
            made.run(until=2)
        assert ended.value.exit_code == 10
    assert [row.aborted for row in Journal(tmp_path).traffic()] == [True, True]


METHODS = ("get_node_ids", "push_messages", "pull_messages")
ERRORS = {
    "a reset connection": ConnectionResetError(),
    "a 500": httpx.HTTPStatusError(
        "500", request=httpx.Request("POST", "http://superlink"), response=httpx.Response(500)
    ),
    "a timeout": httpx.ReadTimeout("slow"),
    "an error of Flower's own": ObjectPushError("object", 1, "session"),
    "a body that is none": ValueError("Invalid protobuf response payload"),
}


def failing(grid: Any, method: str, error: Exception, times: int) -> Any:
    """The grid, one of whose methods raises this error at its first calls."""
    real, calls = getattr(grid, method), iter(range(times))

    def call(*arguments: Any) -> Any:
        if next(calls, None) is not None:
            raise error
        return real(*arguments)

    setattr(grid, method, call)
    return grid


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("method", METHODS)
def test_a_superlink_that_fails_for_a_while_changes_no_byte(toy: Callable[..., Any], method: str, error: Any) -> None:
    calm, made = toy(), toy()
    want, coordinator, _ = calm.run(until=2)
    got, other, _ = made.run(until=2, grid=failing(made.grid(), method, error, times=5))
    assert got == want
    assert bytes_of(other) == bytes_of(coordinator)


@pytest.mark.parametrize(("method", "rounds"), [("get_node_ids", []), ("push_messages", []), ("pull_messages", [1, 2])])
def test_a_superlink_that_fails_for_good_ends_the_run_with_a_typed_error(
    toy: Callable[..., Any], method: str, rounds: list[int]
) -> None:
    made = toy()
    with pytest.raises(RemoteError) as ended:
        made.run(until=2, grid=failing(made.grid(), method, ConnectionError("token=hunter2"), times=10**6))
    assert ended.value.exit_code == 10
    assert "hunter2" not in str(ended.value)
    # What was never sent is not spent.
    assert ledger_rounds(Journal(made.root)) == rounds


def test_requests_that_flower_does_not_take_are_sent_again(toy: Callable[..., Any]) -> None:
    made = toy()
    grid = made.grid()
    real, answers = grid.push_messages, [[]]
    grid.push_messages = lambda messages: answers.pop() if answers else real(messages)
    traffic, _, _ = made.run(until=2, grid=grid)
    assert [row.counted for row in traffic] == [4, 4]


def test_a_cohort_whose_nodes_have_all_gone_costs_its_round_alone(toy: Callable[..., Any]) -> None:
    made = toy()
    grid = made.grid()
    real, answers = grid.push_messages, [[None] * 4]
    grid.push_messages = lambda messages: answers.pop() if answers else real(messages)
    traffic, _, _ = made.run(until=2, grid=grid)
    assert [(row.counted, row.aborted) for row in traffic] == [(0, True), (4, False)]


def test_a_node_that_flower_drops_while_the_requests_are_sent_is_a_silent_one(toy: Callable[..., Any]) -> None:
    made = toy()
    grid = made.grid()
    real = grid.push_messages
    grid.push_messages = lambda messages: [*list(real(messages))[:-1], None]
    traffic, _, _ = made.run(until=2, grid=grid)
    assert [row.counted for row in traffic] == [3, 3]
