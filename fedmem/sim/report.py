"""Write `report.html`: the results of a run as one page that opens offline.

Invariants
- The page loads nothing. Styles and plots lie inside it, and its content security policy forbids everything else.
- Every value of the run is escaped; only our own plots are markup.
- The page shows what `run.json` holds and nothing else, so no private text can reach it.
- A run without differential privacy says `unsafe_no_dp = true` and the reason, above every figure.
- Parts that a run does not have (private blocks, an erasure) are left out.

>>> "nothing yet" in render_page({"name": "nothing yet"})
True
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmem.pages import rendered
from fedmem.sim.report_parts import make_headlines, value_at
from fedmem.sim.report_sections import make_sections

TEMPLATE = "run.html.j2"
MARK = "unsafe_no_dp = true"
"""The beginning of the reason in `run.json` where a run has no differential privacy at device level."""


def write_report(run: Mapping[str, Any], path: Path) -> None:
    """Write the report of a run to a file; a reader sees the old page or the new one.

    Args:
        run: the content of `run.json`.
        path: the file to write.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(render_page(run), encoding="utf-8")
    os.replace(temporary, path)


def render_page(run: Mapping[str, Any]) -> str:
    """Return the whole page as HTML. Pure.

    Args:
        run: the content of `run.json`; every part of it may be missing.
    """
    return rendered(
        TEMPLATE,
        name=run.get("name", "run"),
        subtitle=subtitle(run),
        banner=banner(run),
        headline=make_headlines(run),
        sections=make_sections(run),
        attribution=run.get("attribution") or [],
        config=json.dumps(run["config"], indent=2, sort_keys=True, ensure_ascii=False) if run.get("config") else "",
        digest=run.get("digest"),
    )


def subtitle(run: Mapping[str, Any]) -> str:
    """Return scenario, seed and state in one line.

    Args:
        run: the content of `run.json`; every part of it may be missing.
    """
    parts = [("scenario", run.get("scenario")), ("seed", run.get("seed")), ("state", run.get("state"))]
    return ", ".join(f"{title} {value}" for title, value in parts if value is not None)


def banner(run: Mapping[str, Any]) -> str:
    """Return the reason why this run had no differential privacy at device level; empty where it had.

    Args:
        run: the content of `run.json`; every part of it may be missing.
    """
    reason = str(value_at(run, "epsilon.device_reason") or "")
    if reason.startswith(MARK):
        return reason.removeprefix(MARK).lstrip(" :") or "No reason was given."
    unsafe = value_at(run, "config.unsafe_no_dp") or value_at(run, "config.federation.unsafe_no_dp")
    return (reason or "No reason was given.") if unsafe else ""
