"""Show a comparison as one page that opens offline.

Invariants
- The page uses the template of a run's report: it loads nothing, and every value is escaped.
- Settings without differential privacy are named above every figure, each with its reason.

    render_page(compare(["pretrain-0001", "pretrain-0002"]))
"""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from fedmem.pages import rendered
from fedmem.sim.compare_plots import has_points, loss_over_tokens
from fedmem.sim.compare_tables import make_cells, make_tables, setting_titles, unsafe_settings
from fedmem.sim.report import MARK, TEMPLATE
from fedmem.sim.report_parts import Plot, Section, Table

SECTIONS = {
    "Runs": ("runs", "differs"),
    "Loss": ("loss", "differences", "remarks"),
    "Privacy": ("privacy",),
    "Cost": ("bytes", "cost"),
}
NAMED = 2
"""The greatest number of runs that a heading names."""


def render_page(data: Mapping[str, Any]) -> str:
    """Return the whole page as HTML. Pure.

    Args:
        data: a comparison, as `compare` returns it.
    """
    remarks = Table("remarks", "Remarks", (), make_cells([[note] for note in data["notes"]]), wide=True)
    by_id = {table.id: table for table in (*make_tables(data), remarks) if table.rows}
    plot = Plot(
        "Loss over tokens and rounds",
        "Held-out public text. Left the whole run; right its rounds where measured, from the loss before them.",
        Markup(loss_over_tokens("loss", data["runs"])),  # noqa: S704 -- our own SVG, its texts escaped
        wide=True,
    )
    names = [row["name"] for row in data["runs"]]
    sections = [
        Section(
            title,
            [plot] if title == "Loss" and has_points(data["runs"]) else [],
            [by_id[name] for name in parts if name in by_id],
        )
        for title, parts in SECTIONS.items()
    ]
    return rendered(
        TEMPLATE,
        name="Comparison of " + (" and ".join(names) if len(names) == NAMED else f"{len(names)} runs"),
        subtitle="; ".join(setting_titles(data["runs"]).values()),
        banner="; ".join(unsafe_settings(data)).replace(f"{MARK}: ", ""),
        headline=[],
        sections=sections,
        attribution=data["attribution"],
        config="",
        digest="",
    )
