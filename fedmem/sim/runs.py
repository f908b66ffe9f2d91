"""Find the runs on this machine: list them, load one, choose the name of the next.

Invariants
- Reading a run changes nothing. An unfinished run is shown with its inputs and finished phases.
"""

from pathlib import Path
from typing import Any

from fedmem import paths
from fedmem.errors import NothingMatched
from fedmem.sim.folder import RunFolder, read_json


def run_folders() -> list[RunFolder]:
    """Return the folders of all runs, oldest first."""
    root = paths.runs_dir()
    roots = [path.parent.parent for path in root.glob("[!.]*/state/inputs.json")] if root.exists() else []
    return [RunFolder(path) for path in sorted(roots, key=lambda p: (p / "state" / "inputs.json").stat().st_mtime_ns)]


def find_run(name: str | None) -> RunFolder:
    """Return the folder of a run.

    Args:
        name: the name of the run; None for the last one.

    Raises:
        NothingMatched: there is no such run.
    """
    all_runs = run_folders()
    for folder in reversed(all_runs):
        if name in (None, folder.name):
            return folder
    hint = (
        f"There are: {', '.join(f.name for f in all_runs)}." if all_runs else "`fedmem sim run quickstart` makes one."
    )
    raise NothingMatched(f"There is no run {name or 'yet'}. {hint}")


def find_last_release() -> Path:
    """Return the folder of the newest release of the last run.

    Raises:
        NothingMatched: there is no run, or it has no release yet.
    """
    manifests = sorted(find_run(None).releases.glob("*/release.json"), key=lambda path: path.stat().st_mtime_ns)
    if not manifests:
        raise NothingMatched("The last run has no release yet: go on with it, or name the folder of a release.")
    return manifests[-1].parent


def load_run(name: str | None = None) -> dict[str, Any]:
    """Return the content of a run's `run.json`; for an unfinished run, its inputs and the names of its finished phases.

    Args:
        name: the name of the run; None for the last one.

    Raises:
        NothingMatched: there is no such run.
        VerificationFailed: a file of the run is damaged.
    """
    folder = find_run(name)
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
    """Return name, scenario, seed, state and folder of every run, oldest first."""
    rows = []
    for folder in run_folders():
        data = load_run(folder.name)
        rows.append({key: data[key] for key in ("name", "scenario", "seed", "state")} | {"folder": str(folder.root)})
    return rows


def find_free_name(scenario: str) -> str:
    """Return the first free name: the scenario's name and a number.

    Args:
        scenario: the name of the scenario.
    """
    number = 1
    while (paths.runs_dir() / f"{scenario}-{number:04d}").exists():
        number += 1
    return f"{scenario}-{number:04d}"


def find_unfinished(inputs: dict[str, Any]) -> Path | None:
    """Return the newest unfinished run with the same inputs, or None.

    Args:
        inputs: the inputs of a run; `id` is not compared.

    Returns:
        The folder of the run.
    """
    for folder in reversed(run_folders()):
        if not folder.run_json.exists() and have_same_inputs(folder.inputs(), inputs):
            return folder.root
    return None


def have_same_inputs(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return True if two runs have the same inputs; their random ids are not compared.

    Args:
        first: the inputs of one run.
        second: the inputs of the other run.
    """
    return {**first, "id": ""} == {**second, "id": ""}
