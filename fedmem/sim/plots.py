"""Draw the plots of a run as inline SVG.

Invariants
- Equal data give equal bytes: fixed hash salt, no date, no global state of matplotlib.
- Colours are CSS variables of the page, so a plot follows its light and dark theme.
- An SVG refers to nothing outside itself, and its ids begin with the plot's name.

>>> draw_bars("gain", "Gain", ["1-4"], {"gain": [0.5]}, "nats").startswith("<svg")
True
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib wants real colours; each stands for one variable of the page's style sheet.
INK, MUTED, RULE = "#010101", "#020202", "#030303"
SERIES = ["#010204", "#010205", "#010206", "#010207"]
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", **{c: f"--series-{i + 1}" for i, c in enumerate(SERIES)}}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedmem",
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def draw_svg(name: str, label: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Return the SVG of one plot.

    Args:
        name: the beginning of its ids.
        label: a description for screen readers.
        size: width and height in inches.
        draw: draws into the axes.
    """
    return apply_theme(draw_figure(size, lambda figure: draw(figure.add_subplot())), name, label)


def draw_figure(size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Return the SVG as matplotlib writes it.

    Args:
        size: width and height in inches.
        draw: draws into the figure.
    """
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Text stays text in the SVG and is drawn with the reader's font, so missing glyphs of ours do not matter.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    return buffer.getvalue()


def apply_theme(svg: str, name: str, label: str) -> str:
    """Return the bare `<svg>` element with the page's colours and font.

    Args:
        svg: an SVG, as `draw_figure` returns it.
        name: the beginning of its ids.
        label: a description for screen readers.
    """
    svg = svg[svg.index("<svg") :]
    # A style element would apply to the whole page, and inline SVG needs no name spaces.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans)", svg)
    svg = re.sub(r'id="|href="#|url\(#', lambda match: f"{match[0]}{name}-", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    safe = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{safe}" ', 1).strip()


def add_legend(axes: Axes, entries: int) -> None:
    """Add a legend above the plot if there is more than one entry.

    Args:
        axes: the axes of the plot.
        entries: the number of entries.
    """
    if entries > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=entries, borderpad=0, handlelength=1.2)


def draw_bars(name: str, label: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> str:
    """Return vertical bars: one group for each entry of `groups`, with one bar for each series.

    Args:
        name: the beginning of the plot's ids.
        label: a description for screen readers.
        groups: the titles of the groups.
        series: the values of each series, one for each group; at most four series.
        unit: the title of the vertical axis.
    """

    def draw(axes: Axes) -> None:
        width = 0.6 / len(series)
        for position, (title, values) in enumerate(series.items()):
            middle = [i + (position - (len(series) - 1) / 2) * (width + 0.03) for i in range(len(groups))]
            axes.bar(middle, values, width, label=title, color=SERIES[position])
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_ylabel(unit)
        axes.margins(x=0.04)
        add_legend(axes, len(series))

    return draw_svg(name, label, (6.2, 3.0), draw)


def draw_levels(name: str, label: str, rows: Sequence[tuple[str, float]], unit: str) -> str:
    """Return horizontal bars with their values, one for each row, the first at the top.

    Args:
        name: the beginning of the plot's ids.
        label: a description for screen readers.
        rows: title and value of each bar.
        unit: the title of the horizontal axis.
    """

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        marks = axes.barh(range(len(rows)), [value for _, value in rows], 0.6, color=SERIES[0])
        axes.bar_label(marks, [f"{value:.2f}" for _, value in rows], padding=4, color=INK)
        axes.set_yticks(range(len(rows)), [title for title, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.margins(x=0.12)

    return draw_svg(name, label, (6.2, max(1.4, 0.34 * len(rows) + 0.8)), draw)


def draw_phases(name: str, label: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Return the loss over the phases of a run, one after the other, with a line for each split.

    Args:
        name: the beginning of the plot's ids.
        label: a description for screen readers.
        points: points as {phase, step, loss, split}; of more than four splits the first four are drawn.
    """
    order = list(dict.fromkeys(str(point["phase"]) for point in points))
    splits = list(dict.fromkeys(str(point["split"]) for point in points))[: len(SERIES)]

    def draw(axes: Axes) -> None:
        drawn_splits: set[str] = set()
        for position, phase in enumerate(order):
            inside = [point for point in points if point["phase"] == phase]
            last = max(max(float(point["step"]) for point in inside), 1.0)
            for split in splits:
                split_points = [
                    (position + 0.06 + 0.88 * float(p["step"]) / last, float(p["loss"]))
                    for p in inside
                    if p["split"] == split
                ]
                draw_line(
                    axes, sorted(split_points), SERIES[splits.index(split)], None if split in drawn_splits else split
                )
                drawn_splits |= {split} if split_points else set()
            if position:
                axes.axvline(position, color=RULE, linewidth=0.8)
        axes.set_xticks([position + 0.5 for position in range(len(order))], order)
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(0, len(order))
        axes.set_ylabel("loss, nats a token")
        add_legend(axes, len(drawn_splits))

    return draw_svg(name, label, (11.0, 3.2), draw)


def draw_line(axes: Axes, points: Sequence[tuple[float, float]], colour: str, title: str | None) -> None:
    """Draw one line, with dots if it has few points.

    Args:
        axes: the axes of the plot.
        points: the points, ascending in x; without any nothing is drawn.
        colour: the colour.
        title: the entry in the legend; None for none.
    """
    if points:
        marker = "o" if len(points) <= 12 else ""
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.8, marker=marker, markersize=4, label=title)
