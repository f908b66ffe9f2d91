"""The tables of a comparison hold its figures, in the format of a report."""

import pytest

from fedmem.sim.compare import compare
from fedmem.sim.compare_tables import format_signed, make_tables, setting_titles, unsafe_settings
from tests.sim.finished import REASON, Put


def test_tables_say_what_the_data_say(put: Put) -> None:
    names = [put(f"a{s}", seed=s) for s in (1, 2)]
    names += [put(f"b{s}", {"loss.public.fetched": 4.25, "config.cotrain.batch": 8}, seed=s) for s in (1, 2)]
    rows = {(table.title, row[0]): list(row[1:]) for table in make_tables(compare(names)) for row in table.rows}
    assert rows["What differs", "cotrain.batch"] == ["4", "4", "8", "8"]
    assert rows["Held-out loss", "public, fetched blocks"] == ["4.500", "4.500", "4.250", "4.250"]
    assert rows["Privacy", "ε against readers of released anchors"] == ["∞"] * 4
    assert rows["Privacy", "ε against the coordinator"] == ["∞"] * 4
    assert rows["Bytes", "sent by a device, whole run"] == ["800 B"] * 4
    (difference,) = (
        row
        for table in make_tables(compare(names))
        if table.id == "differences"
        for row in table.rows
        if "fetched" in row[1]
    )
    assert list(difference) == ["B − A", "public, fetched blocks", "−0.2500", "−0.2500 to −0.2500", "1, 2"]


def test_a_figure_that_no_run_has_is_no_row_and_one_that_some_lack_is_a_dash(put: Put) -> None:
    names = put("a", {"peak_rss_mb": None}), put("b", {"peak_rss_mb": None}), put("c", {"parameters": None})
    rows = {(table.id, row[0]): list(row[1:]) for table in make_tables(compare(names[:2])) for row in table.rows}
    assert ("cost", "peak memory") not in rows
    rows = {(table.id, row[0]): list(row[1:]) for table in make_tables(compare(names)) for row in table.rows}
    assert rows["cost", "peak memory"] == ["–", "–", "812.5 MB"]
    assert rows["runs", "anchor's parameters"] == ["139584", "139584", "–"]


def test_titles_name_a_single_run_and_count_the_seeds_of_several(put: Put) -> None:
    names = put("a", seed=1), put("b", seed=2), put("c", {"config.cotrain.batch": 8})
    assert setting_titles(compare(names)["runs"]) == {"A": "A: mini, seeds 1, 2", "B": "B: c"}


def test_only_a_setting_without_epsilon_is_unsafe(put: Put) -> None:
    noisy = {"epsilon.device": 9.0, "epsilon.device_reason": "Poisson sampling"}
    assert unsafe_settings(compare([put("a"), put("b", noisy)])) == [f"A: {REASON}"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "+0.2500"), (-0.25, "−0.2500"), (0.0, "+0.0000"), (-1e-9, "−0.0000")]
)
def test_a_difference_has_a_sign(value: float, text: str) -> None:
    assert format_signed(value) == text
