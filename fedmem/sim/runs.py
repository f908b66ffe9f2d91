"""The runs on this machine: list them, find one, number the next.

Invariants
- Reading a run changes nothing; a run that has not finished is shown with what it knows.
"""

from pathlib import Path
from typing import Any

from fedmem import paths
from fedmem.errors import NothingMatched
from fedmem.sim.folder import RunFolder, read_json


def folders() -> list[RunFolder]:
    """Every run folder, oldest first."""
    root = paths.runs_dir()
    found = [path.parent.parent for path in root.glob("[!.]*/state/inputs.json")] if root.exists() else []
    return [RunFolder(path) for path in sorted(found, key=lambda p: (p / "state" / "inputs.json").stat().st_mtime_ns)]


def find(name: str | None) -> RunFolder:
    """The run called `name`, or the last one. Raises NothingMatched."""
    known = folders()
    for folder in reversed(known):
        if name in (None, folder.name):
            return folder
    hint = f"There are: {', '.join(f.name for f in known)}." if known else "`fedmem sim run quickstart` makes one."
    raise NothingMatched(f"There is no run {name or 'yet'}. {hint}")


def last_release() -> Path:
    """Folder of the newest release of the last run. Raises NothingMatched."""
    found = sorted(find(None).releases.glob("*/release.json"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise NothingMatched("The last run has no release yet: go on with it, or name the folder of a release.")
    return found[-1].parent


def load_run(name: str | None = None) -> dict[str, Any]:
    """`run.json` of a run; of an unfinished one, what it was started with. Raises NothingMatched."""
    folder = find(name)
    if folder.run_json.exists():
        data: dict[str, Any] = read_json(folder.run_json)
        return data
    inputs = folder.inputs()
    return {
        "name": folder.name,
        "scenario": inputs["scenario"]["name"],
        "seed": inputs["seed"],
        "state": "unfinished",
        "phases_done": sorted(folder.facts()),
    }


def list_runs() -> list[dict[str, Any]]:
    """Name, scenario, seed, state and folder of every run, oldest first."""
    rows = []
    for folder in folders():
        data = load_run(folder.name)
        rows.append({key: data[key] for key in ("name", "scenario", "seed", "state")} | {"folder": str(folder.root)})
    return rows


def next_name(scenario: str) -> str:
    """A name that no run has: the scenario's and a number."""
    number = 1
    while (paths.runs_dir() / f"{scenario}-{number:04d}").exists():
        number += 1
    return f"{scenario}-{number:04d}"


def unfinished(inputs: dict[str, Any]) -> Path | None:
    """The newest run that was started with the same inputs and has not finished."""
    for folder in reversed(folders()):
        if not folder.run_json.exists() and same(folder.inputs(), inputs):
            return folder.root
    return None


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two runs were started with the same inputs, their random ids aside."""
    return {**first, "id": ""} == {**second, "id": ""}
