"""What a report is made of: cells, tables, plots, headline figures, and how a number is written.

Invariants
- Parts hold plain text; only `Plot.svg` is markup.
- A missing value is a dash, an infinite one is ∞; neither raises.

>>> loss(4.60417), size(3_211_264), duration(412.3), loss(None)
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
    """Rows under columns; `numbers` are the columns set to the right."""

    id: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int] = frozenset()
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Plot:
    """One drawing with its sentence."""

    title: str
    caption: str
    svg: Markup
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Plots and tables under one title."""

    title: str
    plots: Sequence[Plot]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Headline:
    """One large number."""

    title: str
    value: str
    detail: str


def at(run: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None where any step is missing."""
    value: Any = run
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: Any, form: str) -> str:
    """A number in `form`; a dash for None and NaN, ∞ for infinity."""
    if value is None or math.isnan(float(value)):
        return MISSING
    return ("∞" if value > 0 else "−∞") if math.isinf(float(value)) else format(value, form).replace("-", "−")


def loss(value: Any) -> str:
    """Nats a token."""
    return number(value, ".3f")


def epsilon(value: Any) -> str:
    """A privacy budget."""
    return number(value, ".2f")


def size(value: Any) -> str:
    """Bytes in decimal units."""
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value} B"


def duration(value: Any) -> str:
    """Seconds as a person reads them."""
    if value is None:
        return MISSING
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60)} s"


def headline(run: Mapping[str, Any]) -> list[Headline]:
    """The figures that answer: did it learn, what did it cost, is it gone?"""
    found: list[Headline] = []
    public, private, erasure = at(run, "loss.public") or {}, at(run, "loss.private") or {}, at(run, "erasure") or {}
    if public.get("fetched") is not None:
        found.append(
            Headline(
                "Public loss, block fetched",
                loss(public["fetched"]),
                f"anchor alone {loss(public['anchor'])}" if public.get("anchor") is not None else "",
            )
        )
    if private.get("with") is not None:
        detail = f"without it {loss(private.get('without'))}"
        found.append(Headline("Private loss, with the block", loss(private["with"]), detail))
    if private.get("after_erasure") is not None:
        same = private["after_erasure"] == private.get("without")
        detail = (
            "equal to “without”, to the last bit" if same else f"differs from “without”, {loss(private.get('without'))}"
        )
        found.append(Headline("Private loss, after erasure", loss(private["after_erasure"]), detail))
    if at(run, "epsilon.blocks_max") is not None:
        found.append(
            Headline("ε, largest of the private blocks", epsilon(at(run, "epsilon.blocks_max")), "record level")
        )
    if "epsilon" in run:
        device = at(run, "epsilon.device")
        detail = "device level" if device is not None else "no noise: unsafe_no_dp = true"
        found.append(Headline("ε, federated part", "∞" if device is None else epsilon(device), detail))
    if at(run, "bytes.per_device_round") is not None:
        rounds = len(at(run, "bytes.rounds") or [])
        found.append(
            Headline("Sent by a device in a round", size(at(run, "bytes.per_device_round")), f"{rounds} rounds")
        )
    if erasure.get("status"):
        verified = "receipt verified" if erasure.get("verified") else "receipt not verified"
        found.append(Headline("Erasure", str(erasure["status"]), verified))
    if at(run, "seconds.total") is not None:
        memory = at(run, "peak_rss_mb")
        detail = f"peak memory {size(memory * 1e6)}" if memory is not None else ""
        found.append(Headline("Time", duration(at(run, "seconds.total")), detail))
    return found
