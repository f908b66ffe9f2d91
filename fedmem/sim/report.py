"""`report.html`: what a run gave, as one page that opens offline.

Invariants
- The page loads nothing: styles and plots lie inside it, and its own content policy forbids the rest.
- Every value of the run is escaped; only our own plots are markup.
- It shows what `run.json` holds and nothing else, so no private text can reach it.
- A run without differential privacy says `unsafe_no_dp = true` and why, above every figure.
- What a run does not have (private blocks, an erasure) is left out.

>>> "nothing yet" in page({"name": "nothing yet"})
True
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmem.pages import rendered
from fedmem.sim.report_parts import at, headline
from fedmem.sim.report_sections import sections

TEMPLATE = "run.html.j2"
MARK = "unsafe_no_dp = true"


def write_report(run: Mapping[str, Any], path: Path) -> None:
    """Write the report of `run` (the content of run.json) to `path`; a reader sees the old page or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(page(run), encoding="utf-8")
    os.replace(temporary, path)


def page(run: Mapping[str, Any]) -> str:
    """The whole page. A pure function of `run`."""
    return rendered(
        TEMPLATE,
        name=run.get("name", "run"),
        subtitle=subtitle(run),
        banner=banner(run),
        headline=headline(run),
        sections=sections(run),
        attribution=run.get("attribution") or [],
        config=json.dumps(run["config"], indent=2, sort_keys=True, ensure_ascii=False) if run.get("config") else "",
        digest=run.get("digest"),
    )


def subtitle(run: Mapping[str, Any]) -> str:
    """Scenario, seed and state in a line."""
    parts = [("scenario", run.get("scenario")), ("seed", run.get("seed")), ("state", run.get("state"))]
    return ", ".join(f"{title} {value}" for title, value in parts if value is not None)


def banner(run: Mapping[str, Any]) -> str:
    """Why this run had no device-level differential privacy; empty where it had."""
    reason = str(at(run, "epsilon.device_reason") or "")
    if reason.startswith(MARK):
        return reason.removeprefix(MARK).lstrip(" :") or "No reason was given."
    unsafe = at(run, "config.unsafe_no_dp") or at(run, "config.federation.unsafe_no_dp")
    return (reason or "No reason was given.") if unsafe else ""
