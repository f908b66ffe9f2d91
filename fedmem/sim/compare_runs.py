"""Finished runs as a comparison reads them: `run.json`, checked, with the text that each of them read.

Invariants
- Of a run's folder `run.json` is read, and the name of the file that its text came from; the name is shown as a number.
- A run that is unfinished, unknown or of another format is refused before anything is compared.

>>> flat({"federation": {"rounds": 2}, "private": [{"records": 40}], "widths": [4, 4]})
{'federation.rounds': 2, 'private.0.records': 40, 'widths': [4, 4]}
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedmem.errors import UsageError, VersionMismatch
from fedmem.sim import runs
from fedmem.sim.folder import Facts
from fedmem.sim.report_parts import at

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


def finished(names: Sequence[str]) -> list[Facts]:
    """The runs called `names`, each with its folder's name and its `text`.

    Raises UsageError (an unfinished one), NothingMatched (an unknown one), VersionMismatch (one of another format) and
    VerificationFailed (a damaged file).
    """
    return _with_text([_loaded(name) for name in names])


def _loaded(name: str) -> Facts:
    """`run.json` of a finished run in our format, with the file of its text as `source`."""
    folder = runs.find(name)
    if not folder.run_json.exists():
        raise UsageError(
            f"The run {name} has not finished. Go on with it by the `fedmem sim run` that began it, then compare."
        )
    run = runs.load_run(name)
    if missing := next(_unlike(run), None):
        raise VersionMismatch(
            f"The run {name} is of another format: its {missing} is not what this version writes. "
            "Run its scenario again with this version, or compare with the version that wrote it."
        )
    return {**run, "name": folder.name, "source": at(folder.inputs(), "corpus")}


def _with_text(found: Sequence[Facts]) -> list[Facts]:
    """The runs with `text` in the place of `source`: files of the user's own are numbered, never named."""
    files = list(dict.fromkeys(run["source"] for run in found if run["corpus"] == "user"))
    named = {file: f"the user's own, file {number}" for number, file in enumerate(files, 1)}
    return [
        {key: value for key, value in run.items() if key != "source"}
        | {"text": named[run["source"]] if run["corpus"] == "user" else run["corpus"]}
        for run in found
    ]


def _unlike(run: Any) -> Iterator[str]:
    """Names of what a comparison needs and `run` does not have, or has otherwise."""
    for path, kind in FORMAT.items():
        if not is_a(at(run, path), kind):
            yield path
    for path, fields in ROWS.items():
        for row in at(run, path) or []:
            yield from (f"{path}.{key}" for key, kind in fields.items() if not is_a(at(row, key), kind))


def is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether `value` is of this kind; true and false are no numbers."""
    return isinstance(value, kind) and not isinstance(value, bool)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Scalars and plain lists of nested settings, by dotted name."""
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if not isinstance(value, Mapping):
        return {prefix.removesuffix("."): value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}{key}.")
    return found
