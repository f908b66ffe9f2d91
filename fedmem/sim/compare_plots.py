"""Plot a comparison: the losses of several runs over one axis, inside a page or as a file of its own.

Invariants
- A setting has one colour and line style in every plot; runs that differ in their seed share it.
- Equal data give equal bytes. A picture refers to nothing outside itself and holds its own colours.

>>> loss_over_tokens("loss", []).startswith("<svg")
True
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmem.errors import UsageError
from fedmem.sim.compare_tables import setting_titles
from fedmem.sim.plots import SERIES, VARIABLES, apply_theme, draw_figure

LABEL = "Held-out loss of the runs, over the tokens that they were trained on and over the rounds"
SIZE = (11.0, 4.2)
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
WIDTHS = (3, 2)
COLUMNS = 3
LIGHT = {
    "--ink": "#1b1d21", "--muted": "#5c626c", "--rule": "#dfe1e4",
    "--series-1": "#1f6fb2", "--series-2": "#c2571a", "--series-3": "#2f8a63", "--series-4": "#7a5bb5",
}  # fmt: skip
"""The page's colour variables in its light theme, for a picture outside a page."""


def loss_over_tokens(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the plot as an SVG element for a page.

    Args:
        name: the beginning of the plot's ids.
        rows: the runs of a comparison, as `compare` returns them.
    """
    return apply_theme(draw_figure(SIZE, _curves(rows)), name, LABEL)


def has_points(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if any run has a point to draw.

    Args:
        rows: the runs of a comparison, as `compare` returns them.
    """
    return any(row["curve"] for row in rows)


def draw_picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the same plot as an SVG file on a white background, for any viewer.

    Args:
        rows: the runs of a comparison, as `compare` returns them.

    Raises:
        UsageError: no run has a point to draw.
    """
    if not has_points(rows):
        raise UsageError("None of these runs has a loss curve to draw; name a file that ends in .html for the tables.")
    svg = draw_figure(SIZE, _curves(rows))
    svg = re.sub(r"<metadata\b.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, LIGHT[variable])
    svg = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", svg)
    title, ground = f"<title>{LABEL}</title>", '<rect width="100%" height="100%" fill="#ffffff"/>'
    return re.sub(r"(<svg\b[^>]*>)", rf"\1{title}{ground}", svg, count=1)


def _curves(rows: Sequence[Mapping[str, Any]]) -> Callable[[Figure], None]:
    names = setting_titles(rows)
    most_tokens = max((point["tokens"] for row in rows for point in row["curve"]), default=0)
    unit, factor = ("millions", 1e6) if most_tokens >= 1e6 else ("thousands", 1e3)

    def draw(figure: Figure) -> None:
        token_axes, round_axes = figure.subplots(1, 2, width_ratios=WIDTHS)
        lines = [_line(list(names).index(row["setting"])) for row in rows]
        for row, style in zip(rows, lines, strict=True):
            token_axes.plot([p["tokens"] / factor for p in row["curve"]], [p["loss"] for p in row["curve"]], **style)
            round_axes.plot(*_rounds(row["curve"]), **style | {"marker": "o", "markersize": 4})
        token_axes.set_xlabel(f"tokens trained on, {unit}, all devices together")
        token_axes.set_ylabel("held-out loss, nats a token")
        round_axes.set_visible(any(point["round"] is not None for row in rows for point in row["curve"]))
        round_axes.set_xlabel("rounds of the federation")
        round_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = dict(zip((row["setting"] for row in rows), token_axes.lines, strict=True))
        figure.legend(handles.values(), names.values(), loc="outside upper left", ncols=COLUMNS)

    return draw


def _line(position: int) -> dict[str, Any]:
    """Return the line style of the setting at this position."""
    dashes = DASHES[position // len(SERIES) % len(DASHES)]
    return {"color": SERIES[position % len(SERIES)], "linestyle": dashes, "linewidth": 1.8}


def _rounds(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return rounds and losses of a run, beginning with the last point before its first round."""
    measured = [(point["round"], point["loss"]) for point in points if point["round"] is not None]
    earlier = [(0, point["loss"]) for point in points if point["round"] is None]
    measured = earlier[-1:] + measured if measured else []
    return [number for number, _ in measured], [loss for _, loss in measured]
