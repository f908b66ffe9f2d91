"""Make the tables of a comparison, for the terminal and for the page.

Invariants
- Terminal and page show the same tables; both hold what the comparison holds and nothing else.
- A row is shown where at least one run has the figure. The two ε of the federated part are always shown.

>>> make_tables({"runs": [], "differs": {}, "differences": []})
[]
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedmem.pages import Cell
from fedmem.sim.report_parts import MISSING, Table, format_duration, format_epsilon, format_loss, format_size, value_at

Facts = Mapping[str, Any]
Format = Callable[[Any], str]
INFINITE = "∞"
DIGITS = 12
LOSS_NAMES = {
    "public.anchor": "public, anchor alone",
    "public.generic": "public, generic block",
    "public.fetched": "public, fetched blocks",
    "public.fetched_by_prefix": "public, fetched by the first words",
    "public.wrong": "public, wrong blocks",
    "rounds.before": "public, before the rounds",
    "rounds.after": "public, after the rounds",
    "private.without": "private, without its block",
    "private.with": "private, with its block",
    "private.after_erasure": "private, after erasure",
}


def make_tables(data: Facts) -> list[Table]:
    """Return every table of a comparison that has a row.

    Args:
        data: a comparison, as `compare` returns it.
    """
    all_tables = (
        runs_table(data),
        settings_table(data),
        losses_table(data),
        differences_table(data),
        privacy_table(data),
        traffic_table(data),
        cost_table(data),
    )
    return [table for table in all_tables if table.rows]


def runs_table(data: Facts) -> Table:
    """Return the table of the runs. Runs of one setting differ in their seed only.

    Args:
        data: a comparison, as `compare` returns it.
    """
    figures: dict[str, tuple[str, Format]] = {
        key: (key, str) for key in ("setting", "scenario", "seed", "text", "devices", "rounds")
    }
    figures |= {"anchor's parameters": ("parameters", _plain), "digest": ("digest", lambda digest: digest[:DIGITS])}
    lines = _lines(data, figures)
    note = f"Runs of one setting differ in their seed only. Digests are cut to {DIGITS} digits."
    return _table("runs", "Runs", data, lines, note)


def settings_table(data: Facts) -> Table:
    """Return the table of the settings that differ between the runs.

    Args:
        data: a comparison, as `compare` returns it.
    """
    lines = [(key, *(_plain(values[row["name"]]) for row in data["runs"])) for key, values in data["differs"].items()]
    return _table("differs", "What differs", data, lines, "Keys of the scenario that are not the same in every run.")


def losses_table(data: Facts) -> Table:
    """Return the table of the final held-out losses of each run.

    Args:
        data: a comparison, as `compare` returns it.
    """
    keys = dict.fromkeys(f"{part}.{name}" for row in data["runs"] for part in row["loss"] for name in row["loss"][part])
    lines = _lines(data, {LOSS_NAMES.get(key, key): (f"loss.{key}", format_loss) for key in keys})
    note = "Nats a token at the end of the run, lower is better. Public text on the last release, private on the first."
    return _table("loss", "Held-out loss", data, lines, note)


def differences_table(data: Facts) -> Table:
    """Return the table of differences between settings over their seeds.

    Args:
        data: a comparison, as `compare` returns it.
    """
    lines: list[Sequence[str]] = []
    for difference in data["differences"]:
        seeds = ", ".join(str(seed) for seed in difference["seeds"])
        for part, figures in difference["loss"].items():
            for name, value in figures.items():
                low, high = difference["interval"]["loss"][part][name]
                title, spread = (
                    LOSS_NAMES.get(f"{part}.{name}", f"{part}.{name}"),
                    f"{format_signed(low)} to {format_signed(high)}",
                )
                lines.append(
                    (f"{difference['setting']} − {difference['against']}", title, format_signed(value), spread, seeds)
                )
    columns = ("settings", "loss", "difference", "95 % interval", "seeds")
    note = (
        "Nats a token, negative where the first-named setting has the lower loss. "
        "Mean over the seeds of both, each against itself; Student’s interval."
    )
    return Table("differences", "Differences", columns, make_cells(lines), frozenset({2, 3}), note, wide=True)


def privacy_table(data: Facts) -> Table:
    """Return the table of the two ε of the federated part and the largest ε of the private blocks.

    Args:
        data: a comparison, as `compare` returns it.
    """
    lines = _lines(data, {
        "ε against readers of released anchors": ("epsilon.device", _bound),
        "δ": ("epsilon.device_delta", lambda delta: f"{delta:.0e}"),
        "ε against the coordinator": ("epsilon.coordinator", _bound),
        "ε, largest of the private blocks": ("epsilon.blocks_max", format_epsilon),
    })  # fmt: skip
    reasons = dict.fromkeys(row["epsilon"]["coordinator_reason"] for row in data["runs"])
    note = (
        "Device level for the federated part, record level for blocks. Against the coordinator: "
        + "; ".join(reasons)
        + "."
    )
    return _table("privacy", "Privacy", data, lines, note)


def traffic_table(data: Facts) -> Table:
    """Return the table of the federation's traffic.

    Args:
        data: a comparison, as `compare` returns it.
    """
    lines = _lines(data, {
        "sent by a device, whole run": ("bytes.per_device_up", _bytes),
        "received by a device, whole run": ("bytes.per_device_down", _bytes),
        "a device in a round, both ways": ("bytes.per_device_round", _bytes),
    })  # fmt: skip
    note = "Means: over all devices for the whole run, over the devices that were counted for a round."
    return _table("bytes", "Bytes", data, lines, note)


def cost_table(data: Facts) -> Table:
    """Return the table of time and memory.

    Args:
        data: a comparison, as `compare` returns it.
    """
    lines = _lines(data, {
        "time": ("seconds", format_duration),
        "peak memory": ("peak_rss_mb", lambda mb: _bytes(mb * 1e6)),
    })  # fmt: skip
    return _table("cost", "Cost", data, lines, "Comparable only where the runs had the same machine to themselves.")


def unsafe_settings(data: Facts) -> list[str]:
    """Return the settings whose federated part claims no ε, each with its reason.

    Args:
        data: a comparison, as `compare` returns it.
    """
    reasons = {r["setting"]: r["epsilon"]["device_reason"] for r in data["runs"] if r["epsilon"]["device"] is None}
    return [f"{setting}: {reason}" for setting, reason in reasons.items()]


def setting_titles(rows: Sequence[Facts]) -> dict[str, str]:
    """Return the title of each setting: the name of its only run, or scenario and seeds of several runs.

    Args:
        rows: the runs of a comparison.

    Returns:
        The titles by the letter of the setting.
    """
    by_setting: dict[str, str] = {}
    for setting in dict.fromkeys(row["setting"] for row in rows):
        setting_rows = [row for row in rows if row["setting"] == setting]
        seeds = ", ".join(str(row["seed"]) for row in setting_rows)
        by_setting[setting] = f"{setting}: " + (
            setting_rows[0]["name"] if len(setting_rows) == 1 else f"{setting_rows[0]['scenario']}, seeds {seeds}"
        )
    return by_setting


def format_signed(value: float) -> str:
    """Format a difference with its sign and four decimals, since differences are small beside losses.

    Args:
        value: a difference of losses, in nats per token.
    """
    return f"{value:+.4f}".replace("-", "−")


def _lines(data: Facts, figures: Mapping[str, tuple[str, Format]]) -> list[Sequence[str]]:
    """Return a line for each figure that at least one run has.

    Args:
        data: a comparison.
        figures: for each title, the dotted path in a run and the function that formats the value.
    """
    lines: list[Sequence[str]] = []
    for title, (path, formatted) in figures.items():
        values = [value_at(row, path) for row in data["runs"]]
        if any(value is not None for value in values) or (values and formatted is _bound):
            lines.append((title, *(formatted(v) if v is not None or formatted is _bound else MISSING for v in values)))
    return lines


def _table(name: str, title: str, data: Facts, lines: Sequence[Sequence[str]], note: str) -> Table:
    columns = ("", *(row["name"] for row in data["runs"]))
    return Table(name, title, columns, make_cells(lines), frozenset(range(1, len(columns))), note, wide=True)


def make_cells(lines: Sequence[Sequence[str]]) -> list[list[Cell]]:
    """Turn plain lines into cells.

    Args:
        lines: the texts of each line.
    """
    return [[Cell(item) for item in line] for line in lines]


def _bound(value: float | None) -> str:
    return INFINITE if value is None else format_epsilon(value)


def _bytes(value: float) -> str:
    return format_size(round(value))


def _plain(value: Any) -> str:
    """Format a setting nearly as TOML does."""
    return MISSING if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
