"""Define the parts of a report (tables, plots, headline figures) and format its numbers.

Invariants
- Parts hold plain text; only `Plot.svg` is markup.
- A missing value is a dash, an infinite one is ∞; neither raises.

>>> format_loss(4.60417), format_size(3_211_264), format_duration(412.3), format_loss(None)
('4.604', '3.2 MB', '6 min 52 s', '–')
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedmem.pages import Cell

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        id: the id of the table in the page.
        title: the title.
        columns: the titles of the columns; empty for a table without a head.
        rows: the cells of each row.
        numbers: the indices of the columns that are aligned to the right.
        note: a sentence below the table.
        wide: True if the table takes the whole width of the page.
    """

    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot with its caption.

    Attributes:
        title: the title.
        caption: a sentence below the plot.
        svg: the plot; its texts are escaped.
        wide: True if the plot takes the whole width of the page.
    """

    title: str
    caption: str
    svg: Markup
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Plots and tables under one title.

    Attributes:
        title: the title.
        plots: the plots.
        tables: the tables, below the plots.
    """

    title: str
    plots: Sequence[Plot]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Headline:
    """A figure in large print at the top of the report.

    Attributes:
        title: the name of the figure.
        value: the figure.
        detail: a second, smaller line; it may be empty.
    """

    title: str
    value: str
    detail: str


def value_at(run: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path; None where any step is missing.

    Args:
        run: nested mappings, as JSON holds them.
        path: the keys, joined by dots.
    """
    value: Any = run
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def format_number(value: Any, form: str) -> str:
    """Format a number by `form`; a dash for None and NaN, ∞ for infinity.

    Args:
        value: a number or None.
        form: a format as `format` takes it.
    """
    if value is None or math.isnan(float(value)):
        return MISSING
    return ("∞" if value > 0 else "−∞") if math.isinf(float(value)) else format(value, form).replace("-", "−")


def format_loss(value: Any) -> str:
    """Format a loss in nats per token.

    Args:
        value: a loss or None.
    """
    return format_number(value, ".3f")


def format_epsilon(value: Any) -> str:
    """Format an ε.

    Args:
        value: an ε or None.
    """
    return format_number(value, ".2f")


def format_size(value: Any) -> str:
    """Format a number of bytes in decimal units.

    Args:
        value: the number of bytes, or None.
    """
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value} B"


def format_duration(value: Any) -> str:
    """Format seconds, from one minute on as minutes and seconds.

    Args:
        value: seconds, or None.
    """
    if value is None:
        return MISSING
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60)} s"


def make_headlines(run: Mapping[str, Any]) -> list[Headline]:
    """Return the main figures: losses, ε, traffic, erasure, time.

    Args:
        run: the content of `run.json`; every part of it may be missing.
    """
    headlines: list[Headline] = []
    public, private, erasure = (
        value_at(run, "loss.public") or {},
        value_at(run, "loss.private") or {},
        value_at(run, "erasure") or {},
    )
    if public.get("fetched") is not None:
        headlines.append(
            Headline(
                "Public loss, block fetched",
                format_loss(public["fetched"]),
                f"anchor alone {format_loss(public['anchor'])}" if public.get("anchor") is not None else "",
            )
        )
    if private.get("with") is not None:
        detail = f"without it {format_loss(private.get('without'))}"
        headlines.append(Headline("Private loss, with the block", format_loss(private["with"]), detail))
    if private.get("after_erasure") is not None:
        is_equal = private["after_erasure"] == private.get("without")
        detail = (
            "equal to “without”, to the last bit"
            if is_equal
            else f"differs from “without”, {format_loss(private.get('without'))}"
        )
        headlines.append(Headline("Private loss, after erasure", format_loss(private["after_erasure"]), detail))
    if value_at(run, "epsilon.blocks_max") is not None:
        headlines.append(
            Headline(
                "ε, largest of the private blocks", format_epsilon(value_at(run, "epsilon.blocks_max")), "record level"
            )
        )
    if "epsilon" in run:
        device = value_at(run, "epsilon.device")
        detail = "device level" if device is not None else "no noise: unsafe_no_dp = true"
        headlines.append(Headline("ε, federated part", "∞" if device is None else format_epsilon(device), detail))
    if value_at(run, "bytes.per_device_round") is not None:
        rounds = len(value_at(run, "bytes.rounds") or [])
        headlines.append(
            Headline(
                "Sent by a device in a round", format_size(value_at(run, "bytes.per_device_round")), f"{rounds} rounds"
            )
        )
    if erasure.get("status"):
        verified = "receipt verified" if erasure.get("verified") else "receipt not verified"
        headlines.append(Headline("Erasure", str(erasure["status"]), verified))
    if value_at(run, "seconds.total") is not None:
        memory = value_at(run, "peak_rss_mb")
        detail = f"peak memory {format_size(memory * 1e6)}" if memory is not None else ""
        headlines.append(Headline("Time", format_duration(value_at(run, "seconds.total")), detail))
    return headlines
