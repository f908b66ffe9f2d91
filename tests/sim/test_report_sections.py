"""Each table and plot comes from one part of the run, and is left out where that part is missing."""

import math
from typing import Any

import pytest

from fedmem.pages import Cell
from fedmem.sim import report_sections as parts
from fedmem.sim.report_parts import Table


def texts(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[str(cell) for cell in row] for row in table.rows]


@pytest.mark.parametrize(
    "make",
    [
        parts.phase_plot, parts.frequency_plot, parts.epsilon_plot, parts.bytes_plot, parts.public_loss_table,
        parts.private_loss_table, parts.epsilon_table, parts.erasure_table, parts.residue_table, parts.bytes_table,
        parts.rounds_table, parts.exchange_table, parts.placement_table, parts.releases_table, parts.seconds_table,
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "run", [{}, dict.fromkeys(("loss", "epsilon", "bytes", "erasure", "residue", "placement", "releases", "seconds"))]
)
def test_a_part_without_data_is_left_out(make: Any, run: dict[str, Any]) -> None:
    assert make(run) is None


def test_public_losses_stand_in_a_fixed_order_with_perplexity_and_difference() -> None:
    run = {"loss": {"public": {"wrong": 5.0, "anchor": 4.5, "fetched": 4.25, "fetched_by_prefix": 4.3}}}
    assert texts(parts.public_loss_table(run)) == [
        ["anchor alone", "4.500", "90.0", "–"],
        ["fetched blocks", "4.250", "70.1", "−0.250"],
        ["wrong blocks", "5.000", "148.4", "+0.500"],
    ]


def test_a_diverged_loss_does_not_overflow() -> None:
    rows = texts(parts.public_loss_table({"loss": {"public": {"anchor": 1e9, "fetched": math.inf}}}))
    assert rows[1][1] == "∞"


@pytest.mark.parametrize(
    ("value", "base", "text", "mood"),
    [(4.0, 5.0, "−1.000", "good"), (5.5, 5.0, "+0.500", "bad"), (5.0, 5.0, "–", ""), (5.0, None, "–", "")],
)
def test_a_lower_value_is_good(value: float, base: float | None, text: str, mood: str) -> None:
    cell = parts.change_cell(value, base)
    assert (str(cell), cell.mood) == (text, mood)


def test_blocks_of_infinite_epsilon_are_in_the_table_and_not_in_the_plot() -> None:
    block = {"device": "device-0", "topic": "notes", "epsilon": math.inf, "delta": 1e-5}
    run = {"epsilon": {"blocks": [block], "device": 7.3}}
    assert parts.epsilon_plot(run) is None
    assert texts(parts.epsilon_table(run)) == [
        ["device-0, notes", "∞", "1e-05"],
        ["federated part, device level", "7.30", "–"],
    ]


def test_an_unsafe_federation_claims_no_epsilon_and_says_why() -> None:
    table = parts.epsilon_table({"epsilon": {"device": None, "device_reason": "unsafe_no_dp = true: a test"}})
    assert texts(table) == [["federated part, device level", "∞", "–"]]
    assert table is not None
    assert table.note == "unsafe_no_dp = true: a test"


def test_an_erasure_claims_to_be_crypto_erased_only_when_completed() -> None:
    tables = [
        parts.erasure_table({"erasure": {"status": status, "verified": True}}) for status in ("completed", "partial")
    ]
    assert [bool(table and table.note) for table in tables] == [True, False]
    assert [table.rows[0][1].mood for table in tables if table] == ["good", "bad"]


def test_residue_before_the_erasure_alone_is_shown() -> None:
    assert texts(parts.residue_table({"residue": {"before": 0}})) == [["before the erasure", "0"]]
    table = parts.residue_table({"residue": {"before": 0, "after": 2}})
    assert table is not None
    assert [row[1].mood for row in table.rows] == ["good", "bad"]


def test_faults_of_a_scenario_stand_below_what_the_rounds_gave() -> None:
    rounds = {"before": 5.0, "after": 4.5}
    table = parts.rounds_table({"loss": {"rounds": rounds}, "config": {"federation": {"silent": 0.25, "hostile": 0.0}}})
    assert table is not None
    assert table.note.endswith("With 25% of the devices silent.")
    assert parts.rounds_table({"loss": {"rounds": {"before": 5.0}}}) is None


def test_shares_of_time_add_up_to_the_whole() -> None:
    rows = texts(parts.seconds_table({"seconds": {"total": 10.0, "prepare": 2.5, "erase": 7.5}}))
    assert rows == [["prepare", "2.5 s", "25%"], ["erase", "7.5 s", "75%"], ["total", "10.0 s", ""]]
    assert texts(parts.seconds_table({"seconds": {"prepare": 4.0}}))[-1] == ["total", "4.0 s", ""]


def test_rows_keep_their_cells_and_drop_none() -> None:
    cell = Cell("x", "bad")
    assert parts.make_rows((cell, 3))[0][0] is cell
    assert [str(row[0]) for row in parts.rows_with_values(("a", 0), ("b", None), ("c", ""))] == ["a", "c"]
    assert parts.drop_missing([None, 0, "", None]) == [0, ""]


def test_sections_stand_in_reading_order_and_without_empty_ones() -> None:
    run = {"seconds": {"prepare": 1.0}, "loss": {"public": {"anchor": 5.0}}, "releases": ["9f" * 32]}
    assert [section.title for section in parts.make_sections(run)] == ["Learning", "Federation", "Cost"]
