"""Plots are inline SVG with equal bytes for equal data, and nothing in them is read as markup."""

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from fedmem.sim import plots

EVIL = '<script>"&$x$'
POINTS = [
    {"phase": phase, "step": step, "loss": 6.0 - step, "split": split}
    for phase in ("one", "two")
    for step in (1, 2)
    for split in ("heldout", "train")
]
DRAWN: dict[str, Callable[..., str]] = {
    "bars": lambda name, label: plots.draw_bars(name, label, ["1-4", EVIL], {"up": [1, 2], EVIL: [3, 4]}, "MB"),
    "levels": lambda name, label: plots.draw_levels(name, label, [("a", 1.0), (EVIL, 2.5)], "ε"),
    "phases": lambda name, label: plots.draw_phases(name, label, POINTS),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())
def test_a_plot_is_well_formed_refers_to_itself_alone_and_repeats(draw: Callable[..., str]) -> None:
    svg = draw("plot", EVIL)
    tree = ElementTree.fromstring(svg)
    assert tree.attrib["aria-label"] == EVIL
    ids = {element.attrib["id"] for element in tree.iter() if "id" in element.attrib}
    assert ids
    assert all(name.startswith("plot-") for name in ids)
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert {first or second for first, second in references} <= ids
    assert re.findall(r'href="(?!#)|url\((?!#)|https?:|<style|<metadata|<script', svg) == []
    assert not any(colour in svg for colour in plots.VARIABLES)
    assert draw("plot", EVIL) == svg


def test_values_are_written_beside_their_bars() -> None:
    text = "".join(ElementTree.fromstring(plots.draw_levels("a", "b", [("x", 1.005), ("y", 20.0)], "ε")).itertext())
    assert "1.00" in text
    assert "20.00" in text


@pytest.mark.parametrize(("series", "has_legend"), [({"gain": [1.0]}, False), ({"up": [1.0], "down": [2.0]}, True)])
def test_a_legend_is_for_more_than_one_entry(series: dict[str, list[float]], has_legend: bool) -> None:
    svg = plots.draw_bars("a", "b", ["1"], series, "MB")
    assert ("legend" in svg) == has_legend


def test_of_many_splits_the_first_four_are_drawn() -> None:
    points = [{"phase": "one", "step": 1, "loss": n, "split": f"split-{n}"} for n in range(6)]
    text = "".join(ElementTree.fromstring(plots.draw_phases("a", "b", points)).itertext())
    assert [f"split-{n}" in text for n in range(6)] == [True] * 4 + [False] * 2


def test_a_phase_of_one_point_at_step_0_is_drawn() -> None:
    ElementTree.fromstring(plots.draw_phases("a", "b", [{"phase": "x", "step": 0, "loss": 1.0, "split": "heldout"}]))
