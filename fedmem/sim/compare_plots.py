"""The plots of a comparison: loss of several runs over the same axis, inside a page or as a picture of its own.

Invariants
- A setting has one colour and line, in every plot; runs that differ in their seed share it.
- Equal data give equal bytes; a picture refers to nothing outside itself and carries its own colours.

>>> loss_over_tokens("loss", []).startswith("<svg")
True
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmem.errors import UsageError
from fedmem.sim.compare_tables import titles
from fedmem.sim.plots import SERIES, VARIABLES, raw, themed

LABEL = "Held-out loss of the runs, over the tokens that they were trained on and over the rounds"
SIZE = (11.0, 4.2)
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
WIDTHS = (3, 2)
COLUMNS = 3
LIGHT = {
    "--ink": "#1b1d21", "--muted": "#5c626c", "--rule": "#dfe1e4",
    "--series-1": "#1f6fb2", "--series-2": "#c2571a", "--series-3": "#2f8a63", "--series-4": "#7a5bb5",
}  # fmt: skip
"""What the page's variables are in light, for a picture that has no page."""


def loss_over_tokens(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The plot called `name` as it stands in a page."""
    return themed(raw(SIZE, _curves(rows)), name, LABEL)


def drawable(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any run has a point to draw."""
    return any(row["curve"] for row in rows)


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same plot as an SVG file, on white, that any viewer shows. Raises UsageError where there is no point."""
    if not drawable(rows):
        raise UsageError("None of these runs has a loss curve to draw; name a file that ends in .html for the tables.")
    svg = raw(SIZE, _curves(rows))
    svg = re.sub(r"<metadata\b.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, LIGHT[variable])
    svg = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", svg)
    title, ground = f"<title>{LABEL}</title>", '<rect width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r"(<svg\b[^>]*>)", rf"\1{title}{ground}", svg, count=1)


def _curves(rows: Sequence[Mapping[str, Any]]) -> Callable[[Figure], None]:
    names = titles(rows)
    most = max((point["tokens"] for row in rows for point in row["curve"]), default=0)
    unit, factor = ("millions", 1e6) if most >= 1e6 else ("thousands", 1e3)

    def draw(figure: Figure) -> None:
        whole, rounds = figure.subplots(1, 2, width_ratios=WIDTHS)
        lines = [_line(list(names).index(row["setting"])) for row in rows]
        for row, style in zip(rows, lines, strict=True):
            whole.plot([p["tokens"] / factor for p in row["curve"]], [p["loss"] for p in row["curve"]], **style)
            rounds.plot(*_rounds(row["curve"]), **style | {"marker": "o", "markersize": 4})
        whole.set_xlabel(f"tokens trained on, {unit}, all devices together")
        whole.set_ylabel("held-out loss, nats a token")
        rounds.set_visible(any(point["round"] is not None for row in rows for point in row["curve"]))
        rounds.set_xlabel("rounds of the federation")
        rounds.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = dict(zip((row["setting"] for row in rows), whole.lines, strict=True))
        figure.legend(handles.values(), names.values(), loc="outside upper left", ncols=COLUMNS)

    return draw


def _line(place: int) -> dict[str, Any]:
    """How the setting at this place is drawn."""
    dashes = DASHES[place // len(SERIES) % len(DASHES)]
    return {"color": SERIES[place % len(SERIES)], "linestyle": dashes, "linewidth": 1.8}


def _rounds(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Rounds and losses of a run, from the last point before its first round on."""
    found = [(point["round"], point["loss"]) for point in points if point["round"] is not None]
    before = [(0, point["loss"]) for point in points if point["round"] is None]
    found = before[-1:] + found if found else []
    return [number for number, _ in found], [loss for _, loss in found]
