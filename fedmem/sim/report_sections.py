"""Make the sections of a report, each from one part of `run.json`.

Invariants
- A section whose data are missing is left out, and so is each plot and table in it.
- Each function is pure and reads only the part of `run.json` that its name says.

>>> make_sections({})
[]
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from fedmem.pages import Cell
from fedmem.sim import plots
from fedmem.sim.report_parts import (
    Plot,
    Section,
    Table,
    format_duration,
    format_epsilon,
    format_loss,
    format_number,
    format_size,
    value_at,
)

Run = Mapping[str, Any]
Part = TypeVar("Part")
PUBLIC = {
    "anchor": "anchor alone",
    "generic": "generic block",
    "fetched": "fetched blocks",
    "wrong": "wrong blocks",
}
BLOCK = ("without", "with", "after_erasure")


def make_sections(run: Run) -> list[Section]:
    """Return all sections that `run` has data for, in reading order.

    Args:
        run: the content of `run.json`; every part of it may be missing.
    """
    layout: list[tuple[str, list[Callable[[Run], Plot | None]], list[Callable[[Run], Table | None]]]] = [
        ("Learning", [phase_plot, frequency_plot], [public_loss_table]),
        ("Private blocks", [epsilon_plot], [epsilon_table, private_loss_table]),
        ("Erasure", [], [erasure_table, residue_table]),
        ("Federation", [bytes_plot], [rounds_table, bytes_table, exchange_table, placement_table, releases_table]),
        ("Cost", [], [seconds_table]),
    ]
    all_sections = [
        Section(
            title,
            drop_missing(plot(run) for plot in plot_functions),
            drop_missing(table(run) for table in table_functions),
        )
        for title, plot_functions, table_functions in layout
    ]
    return [section for section in all_sections if section.plots or section.tables]


def drop_missing(parts: Iterable[Part | None]) -> list[Part]:
    """Return the parts that are not None.

    Args:
        parts: the parts, in their order.
    """
    return [part for part in parts if part is not None]


def make_rows(*lines: Sequence[object]) -> list[list[Cell]]:
    """Turn plain lines into cells; a Cell stays as it is.

    Args:
        lines: the items of each line.
    """
    return [[item if isinstance(item, Cell) else Cell(str(item)) for item in line] for line in lines]


def rows_with_values(*items: tuple[str, object]) -> list[list[Cell]]:
    """Return rows of name and value, without those whose value is None.

    Args:
        items: name and value of each row.
    """
    return make_rows(*(item for item in items if item[1] is not None))


def phase_plot(run: Run) -> Plot | None:
    """Return the plot of the loss along the run.

    Args:
        run: the content of `run.json`.
    """
    points = value_at(run, "loss.by_phase")
    if not points:
        return None
    svg = plots.draw_phases("phases", "Loss along the phases of the run", points)
    caption = "Each phase from its first step to its last, phases set end to end. Lower is better."
    return Plot("Loss by phase", caption, Markup(svg), wide=True)  # noqa: S704 -- our own SVG, its label escaped


def frequency_plot(run: Run) -> Plot | None:
    """Return the plot of the bank's gain by the frequency of a document's cluster.

    Args:
        run: the content of `run.json`.
    """
    buckets = [bucket for bucket in value_at(run, "loss.by_frequency") or [] if bucket.get("gain") is not None]
    if not buckets:
        return None
    groups = [f"{bucket['bucket']}\n{bucket['documents']} documents" for bucket in buckets]
    values = {"gain": [bucket["gain"] for bucket in buckets]}
    svg = plots.draw_bars(
        "frequency", "Gain of fetched blocks by cluster frequency", groups, values, "gain, nats a token"
    )
    caption = (
        "Loss of the anchor alone minus loss with fetched blocks, held-out text, by size of the document’s cluster."
    )
    return Plot("Gain by cluster frequency", caption, Markup(svg))  # noqa: S704 -- as above


def public_loss_table(run: Run) -> Table | None:
    """Return the table of losses on held-out public text.

    Args:
        run: the content of `run.json`.
    """
    public = value_at(run, "loss.public") or {}
    losses = [(label, public[key]) for key, label in PUBLIC.items() if public.get(key) is not None]
    lines = [
        (label, format_loss(v), f"{math.exp(min(v, 50)):.1f}", change_cell(v, public.get("anchor")))
        for label, v in losses
    ]
    note = "Held-out text, lower is better. The anchor alone saw as many tokens; wrong blocks come from another path."
    columns = ("model", "loss, nats a token", "perplexity", "against anchor")
    return Table("public", "Public text", columns, make_rows(*lines), frozenset({1, 2, 3}), note) if lines else None


def change_cell(value: float, base: float | None) -> Cell:
    """Return the signed difference to `base` as a cell; a lower value is marked good.

    Args:
        value: the value.
        base: the value to compare with; None for none.
    """
    if base is None or value == base:
        return Cell("–")
    return Cell(f"{value - base:+.3f}".replace("-", "−"), "good" if value < base else "bad")


def private_loss_table(run: Run) -> Table | None:
    """Return the table of losses on held-out private text, for all blocks together and for each.

    Args:
        run: the content of `run.json`.
    """
    overall, blocks = value_at(run, "loss.private") or {}, value_at(run, "loss.private_blocks") or []
    lines = [("overall", *(format_loss(overall.get(key)) for key in BLOCK))] if overall.get("with") is not None else []
    lines += [(f"{b['device']}, {b['topic']}", *(format_loss(b.get(key)) for key in BLOCK)) for b in blocks]
    columns = ("block", "without", "with", "after erasure")
    note = "Nats a token on held-out private text. “After erasure” is measured in a fresh process."
    return (
        Table("private", "Private text", columns, make_rows(*lines), frozenset({1, 2, 3}), note, wide=True)
        if lines
        else None
    )


def epsilon_plot(run: Run) -> Plot | None:
    """Return the plot of the ε of each private block.

    Args:
        run: the content of `run.json`.
    """
    blocks = [block for block in value_at(run, "epsilon.blocks") or [] if math.isfinite(block["epsilon"])]
    if not blocks:
        return None
    lines = [(f"{b['device']}, {b['topic']}", float(b["epsilon"])) for b in blocks]
    svg = plots.draw_levels("epsilon", "ε of each private block", lines, "ε, record level")
    caption = "Computed from the ledger, every training of the block included."
    return Plot("ε per block", caption, Markup(svg))  # noqa: S704 -- as above


def epsilon_table(run: Run) -> Table | None:
    """Return the table of ε and δ of each private block and of the federated part.

    Args:
        run: the content of `run.json`.
    """
    lines = [
        (f"{b['device']}, {b['topic']}", format_epsilon(b["epsilon"]), f"{b['delta']:.0e}")
        for b in value_at(run, "epsilon.blocks") or []
    ]
    if value_at(run, "epsilon.device") is not None:
        lines.append(("federated part, device level", format_epsilon(value_at(run, "epsilon.device")), "–"))
    elif lines or value_at(run, "epsilon.device_reason"):
        lines.append(("federated part, device level", "∞", "–"))
    note = str(value_at(run, "epsilon.device_reason") or "")
    return (
        Table("epsilon", "Privacy budget spent", ("what", "ε", "δ"), make_rows(*lines), frozenset({1, 2}), note)
        if lines
        else None
    )


def erasure_table(run: Run) -> Table | None:
    """Return the table of the erasure and its receipt.

    Args:
        run: the content of `run.json`.
    """
    facts = value_at(run, "erasure") or {}
    if not facts.get("status"):
        return None
    status = Cell(facts["status"], "good" if facts["status"] == "completed" else "bad")
    receipt = Cell("signature verified", "good") if facts.get("verified") else Cell("not verified", "bad")
    lines = rows_with_values(
        ("state", status), ("device", facts.get("device")), ("topic", facts.get("topic")),
        ("receipt", receipt), ("receipt file", facts.get("receipt")),
    )  # fmt: skip
    note = "Crypto-erased: no key that still exists opens what was stored."
    return Table(
        "erasure", "Erasure of one private block", (), lines, note=note if facts["status"] == "completed" else ""
    )


def residue_table(run: Run) -> Table | None:
    """Return the table of private records found in the clear in the run folder.

    Args:
        run: the content of `run.json`.
    """
    scan = value_at(run, "residue") or {}
    lines = [
        (f"{when} the erasure", Cell(str(scan[when]), "bad" if scan[when] else "good"))
        for when in ("before", "after")
        if when in scan
    ]
    note = "A scan of every file of the run folder for the text of every private record."
    columns = ("scan", "records in the clear")
    return Table("residue", "Residue scan", columns, make_rows(*lines), frozenset({1}), note) if lines else None


def bytes_plot(run: Run) -> Plot | None:
    """Return the plot of the traffic of each round.

    Args:
        run: the content of `run.json`.
    """
    rounds = value_at(run, "bytes.rounds")
    if not rounds:
        return None
    values = {"up": [r["up"] / 1e6 for r in rounds], "down": [r["down"] / 1e6 for r in rounds]}
    svg = plots.draw_bars(
        "bytes", "Bytes of each round", [f"round {r['round']}" for r in rounds], values, "MB, all devices"
    )
    return Plot("Bytes per round", "Everything handed to Flower, all devices together.", Markup(svg))  # noqa: S704 -- as above


def bytes_table(run: Run) -> Table | None:
    """Return the table of the traffic of each round.

    Args:
        run: the content of `run.json`.
    """
    lines = [
        (f"round {r['round']}", format_size(r["up"]), format_size(r["down"]))
        for r in value_at(run, "bytes.rounds") or []
    ]
    columns = ("round", "up", "down")
    return Table("bytes", "Traffic", columns, make_rows(*lines), frozenset({1, 2})) if lines else None


def rounds_table(run: Run) -> Table | None:
    """Return the table of held-out loss before and after the federated rounds.

    Args:
        run: the content of `run.json`.
    """
    figures = value_at(run, "loss.rounds") or {}
    before, after = figures.get("before"), figures.get("after")
    if before is None or after is None:
        return None
    lines = [
        ("the coordinator’s own, before", format_loss(before), ""),
        ("after the rounds", format_loss(after), change_cell(after, before)),
    ]
    f = value_at(run, "config.federation") or {}
    shares = [f"{f[key]:.0%} of the devices {key}" for key in ("silent", "hostile") if f.get(key)]
    note = "Held-out text, fetched blocks, nats a token." + (f" With {' and '.join(shares)}." if shares else "")
    columns = ("federated rounds", "loss", "change")
    return Table("rounds", "What the rounds gave", columns, make_rows(*lines), frozenset({1, 2}), note)


def exchange_table(run: Run) -> Table | None:
    """Return the table that compares a device's bytes in a round with exchanging the gradients of each step.

    Args:
        run: the content of `run.json`.
    """
    traffic = value_at(run, "bytes") or {}
    if not traffic.get("below_per_step"):
        return None
    lines = rows_with_values(
        ("federated parameters", f"{traffic['coordinates']:,}"),
        ("a device in a round", format_size(traffic["per_device_round"])),
        ("gradients of each of its steps instead", format_size(traffic["per_step_exchange"])),
        ("times fewer bytes", f"{traffic['below_per_step']:.0f}"),
    )  # fmt: skip
    note = "Gradients of each local step as bf16, two bytes a parameter up and two down; here once a round, both ways."
    return Table("exchange", "Against exchange at each step", (), lines, frozenset({1}), note)


def placement_table(run: Run) -> Table | None:
    """Return the table of the policy's decisions.

    Args:
        run: the content of `run.json`.
    """
    figures = value_at(run, "placement") or {}
    share = figures.get("agreement")
    lines = rows_with_values(
        ("records shared", figures.get("shared")), ("records private", figures.get("private")),
        ("agreement with the source", None if share is None else f"{share:.1%}"),
    )  # fmt: skip
    return Table("placement", "Placement by the policy", (), lines, frozenset({1})) if lines else None


def releases_table(run: Run) -> Table | None:
    """Return the table of releases, in the order in which they were made.

    Args:
        run: the content of `run.json`.
    """
    lines = [(str(i), Cell(digest)) for i, digest in enumerate(run.get("releases") or [], 1)]
    note = "A block answers on the release it was trained with."
    return Table("releases", "Releases", ("", "digest"), make_rows(*lines), note=note, wide=True) if lines else None


def seconds_table(run: Run) -> Table | None:
    """Return the table of the time of each phase.

    Args:
        run: the content of `run.json`.
    """
    by_phase = dict(value_at(run, "seconds") or {})
    total = by_phase.pop("total", None) or sum(by_phase.values())
    lines = [
        (phase, format_duration(value), format_number(value / total, ".0%") if total else "–")
        for phase, value in by_phase.items()
    ]
    lines += [("total", format_duration(total), "")] if total else []
    return (
        Table("seconds", "Time by phase", ("phase", "time", "share"), make_rows(*lines), frozenset({1, 2}))
        if lines
        else None
    )
