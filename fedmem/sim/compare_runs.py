"""Load finished runs for a comparison: `run.json`, checked, with the text that each run read.

Invariants
- Two things are read from a run's folder: `run.json`, and the name of the file of its text, which is shown as a number.
- A run that is unfinished, unknown or of another format is refused before anything is compared.

>>> flatten({"federation": {"rounds": 2}, "private": [{"records": 40}], "widths": [4, 4]})
{'federation.rounds': 2, 'private.0.records': 40, 'widths': [4, 4]}
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedmem.errors import UsageError, VersionMismatch
from fedmem.sim import runs
from fedmem.sim.folder import Facts
from fedmem.sim.report_parts import value_at

NUMBER = (int, float)
MAYBE = (int, float, type(None))
FORMAT: dict[str, type | tuple[type, ...]] = {
    "scenario": str, "seed": int, "corpus": str, "digest": str,
    "config.public.devices": int, "config.anchor.length": int,
    "loss.public": dict, "loss.by_phase": list,
    "epsilon.device_reason": str, "epsilon.coordinator_reason": str, "epsilon.device_delta": NUMBER,
    "epsilon.device": MAYBE, "epsilon.coordinator": MAYBE, "epsilon.blocks_max": MAYBE,
    "bytes.per_device_round": NUMBER, "bytes.rounds": list, "seconds.total": NUMBER,
    "parameters": MAYBE, "peak_rss_mb": MAYBE,
}  # fmt: skip
ROWS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "loss.by_phase": {"phase": str, "step": NUMBER, "loss": NUMBER, "split": str},
    "bytes.rounds": {"up": int, "down": int},
}


def load_finished(names: Sequence[str]) -> list[Facts]:
    """Return the content of `run.json` for each run, with its folder's name and its `text`.

    Args:
        names: the names of the runs.

    Raises:
        UsageError: a run is unfinished.
        NothingMatched: a run is unknown.
        VersionMismatch: a run has another format.
        VerificationFailed: a file is damaged.
    """
    return _with_text([_load_finished(name) for name in names])


def _load_finished(name: str) -> Facts:
    """Return `run.json` of a finished run in our format, with the file of its text as `source`."""
    folder = runs.find_run(name)
    if not folder.run_json.exists():
        raise UsageError(
            f"The run {name} has not finished. Go on with it by the `fedmem sim run` that began it, then compare."
        )
    run = runs.load_run(name)
    if wrong_key := next(_wrong_keys(run), None):
        raise VersionMismatch(
            f"The run {name} is of another format: its {wrong_key} is not what this version writes. "
            "Run its scenario again with this version, or compare with the version that wrote it."
        )
    return {**run, "name": folder.name, "source": value_at(folder.inputs(), "corpus")}


def _with_text(all_runs: Sequence[Facts]) -> list[Facts]:
    """Return the runs with `text` instead of `source`; files of the user are numbered and never named."""
    files = list(dict.fromkeys(run["source"] for run in all_runs if run["corpus"] == "user"))
    titles = {file: f"the user's own, file {number}" for number, file in enumerate(files, 1)}
    return [
        {key: value for key, value in run.items() if key != "source"}
        | {"text": titles[run["source"]] if run["corpus"] == "user" else run["corpus"]}
        for run in all_runs
    ]


def _wrong_keys(run: Any) -> Iterator[str]:
    """Yield the names of needed values that are missing in `run` or have another type."""
    for path, kind in FORMAT.items():
        if not has_type(value_at(run, path), kind):
            yield path
    for path, fields in ROWS.items():
        for row in value_at(run, path) or []:
            yield from (f"{path}.{key}" for key, kind in fields.items() if not has_type(value_at(row, key), kind))


def has_type(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Return True if `value` is of this type; a bool does not count as a number.

    Args:
        value: a value of `run.json`.
        kind: the type, or several of which one is enough.
    """
    return isinstance(value, kind) and not isinstance(value, bool)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return scalars and plain lists of nested settings, by dotted name.

    Args:
        value: settings, as JSON holds them.
        prefix: the dotted name of `value`, with a dot at its end; empty for all settings.
    """
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): value}
    values: dict[str, Any] = {}
    for key, item in value.items():
        values |= flatten(item, f"{prefix}{key}.")
    return values
