"""`fedmem sim run`: a scenario from its text to its report, phase by phase.

Invariants
- A phase whose facts are on disk is not run again; a killed run goes on at the phase that it was in (I7).
- Same scenario, seed and text give the same digest, with or without a kill in between (I9).
- Nothing reaches a network: outbound switches are off before Flower is imported (I10).

    run("quickstart", corpus=None, seed=None, fresh=False, name=None, progress=print)
"""

import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedmem.federation.offline  # noqa: F401
from fedmem import paths
from fedmem.errors import UsageError, VerificationFailed
from fedmem.sim import keys, runs, scenario
from fedmem.sim.context import Progress, Simulation
from fedmem.sim.folder import Facts, RunFolder, read_json, write_json
from fedmem.sim.phases import central, erase, evaluate, federated, private
from fedmem.sim.report import write_report
from fedmem.sim.scenario import Scenario
from fedmem.sim.summary import summarise
from fedmem.storage.locks import WriterLock

Phase = Callable[[Simulation], Facts]


def phases(chosen: Scenario) -> dict[str, Phase]:
    """Phases of a scenario by name, in their order."""
    rounds = {f"rounds_{n}": federated.rounds_phase(n) for n in range(1, chosen.federation.releases + 1)}
    first: dict[str, Phase] = {
        "prepare": central.prepare,
        "pretrain": central.pretrain_phase,
        "cotrain": central.cotrain_phase,
    }
    first["rounds_1"] = rounds.pop("rounds_1")
    return (
        first
        | {"private": private.private_phase}
        | rounds
        | {
            "evaluate": evaluate.evaluate_phase,
            "erase": erase.erase_phase,
        }
    )


def run(
    which: str | Scenario,
    *,
    corpus: Path | None,
    seed: int | None,
    fresh: bool,
    name: str | None,
    progress: Progress,
    workers: int = 0,
) -> dict[str, Any]:
    """Run a scenario, or go on with an unfinished run of the same inputs; returns the content of `run.json`.

    `which`: a scenario, the name of one that comes with fedmem, or the path of a TOML file.
    `workers`: processes that the devices run in, 0 for this one alone; a run may go on with another number.

    Raises UsageError (a scenario that is unknown or contradicts itself, a corrupt corpus, a missing package), Refused
    (the corpus changed), Busy (the run is running), WorkerLost, StorageError, and VerificationFailed where the finished
    run shows a broken promise.
    """
    chosen = scenario.from_dict(which.to_dict()) if isinstance(which, Scenario) else scenario.load(which)
    inputs = {
        "id": secrets.token_hex(16),
        "scenario": chosen.to_dict(),
        "seed": chosen.seed if seed is None else seed,
        "corpus": str(corpus.resolve()) if corpus else None,
    }
    folder = _folder(inputs, chosen, fresh, name)
    sim = _started(folder, chosen, inputs, corpus, progress)
    sim.workers = workers
    lock = WriterLock(folder.root / "run.lock", "run")
    try:
        if folder.run_json.exists():
            data: dict[str, Any] = read_json(folder.run_json)
            return data
        keys.bind(sim)
        for phase, work in phases(chosen).items():
            if phase not in folder.facts():
                _timed(sim, phase, work)
        data = summarise(sim)
        write_report(data, folder.report)
        keys.forget(sim)
        write_json(folder.run_json, data)
    finally:
        lock.release()
    check(data)
    return data


def check(data: dict[str, Any]) -> None:
    """Raise VerificationFailed where a finished run shows that a promise did not hold."""
    private, erased = data["loss"]["private"], data["erasure"]
    broken = {
        "private text lies in the clear in the run folder": any(data["residue"].values()),
        "the erasure does not verify": bool(erased) and not erased["verified"],
        "the erased block still answers": bool(private) and private["after_erasure"] != private["without"],
    }
    for what, found in broken.items():
        if found:
            raise VerificationFailed(f"The run {data['name']} ended, but {what}; see its report, and report a bug.")


def _timed(sim: Simulation, phase: str, work: Phase) -> None:
    start = time.monotonic()
    facts = work(sim)
    sim.folder.finish(phase, facts | {"seconds": round(time.monotonic() - start, 2)})


def _folder(inputs: Facts, chosen: Scenario, fresh: bool, name: str | None) -> RunFolder:
    if name is None:
        going_on = None if fresh else runs.unfinished(inputs)
        return RunFolder(going_on or paths.runs_dir() / runs.next_name(chosen.name))
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError("A run's name has letters, digits, '.', '_' and '-' only, and starts with a letter or digit.")
    folder = RunFolder(paths.runs_dir() / name)
    if folder.root.exists() and fresh:
        raise UsageError(f"There is a run {name} already; --fresh needs another name.")
    if folder.root.exists() and not (folder.known() and runs.same(folder.inputs(), inputs)):
        raise UsageError(f"There is a run {name} with other inputs; choose another name.")
    return folder


def _started(folder: RunFolder, chosen: Scenario, inputs: Facts, corpus: Path | None, progress: Progress) -> Simulation:
    sim = Simulation(folder, chosen, inputs["seed"], corpus, progress)
    if not folder.root.exists():
        # Read all text first: a corrupt corpus or a missing package leaves no half-made run behind.
        progress("prepare", 0, 4, "reading text")
        _ = sim.population
        folder.create(inputs)
    return sim


def simulation(folder: RunFolder, progress: Progress) -> Simulation:
    """The simulation that lies in a run folder."""
    inputs = folder.inputs()
    chosen = scenario.from_dict(inputs["scenario"])
    corpus = Path(inputs["corpus"]) if inputs["corpus"] else None
    return Simulation(folder, chosen, inputs["seed"], corpus, progress)
