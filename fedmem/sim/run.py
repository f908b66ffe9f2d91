"""Execute a scenario phase by phase, from its text to its report: `fedmem sim run`.

Invariants
- A phase whose facts are on disk is not executed again. A killed run continues with the phase that it was in (I7).
- Equal scenario, seed and text give an equal digest, with or without a kill in between (I9).
- The run uses no network: outbound switches are off before Flower is imported (I10).

    run_scenario("quickstart", corpus=None, seed=None, fresh=False, name=None, progress=print)
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
from fedmem.sim import keys, runs
from fedmem.sim.context import Progress, Simulation
from fedmem.sim.folder import Facts, RunFolder, read_json, write_json
from fedmem.sim.phases import central, erase, evaluate, federated, private
from fedmem.sim.report import write_report
from fedmem.sim.scenario import Scenario, from_dict, load
from fedmem.sim.summary import summarise_run
from fedmem.storage.locks import WriterLock

PhaseFunction = Callable[[Simulation], Facts]


def phases_of(scenario: Scenario) -> dict[str, PhaseFunction]:
    """Return the phases of a scenario by name, in their order.

    Args:
        scenario: the scenario.
    """
    rounds = {f"rounds_{n}": federated.make_rounds_phase(n) for n in range(1, scenario.federation.releases + 1)}
    first: dict[str, PhaseFunction] = {
        "prepare": central.prepare_phase,
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


def run_scenario(
    scenario_or_name: str | Scenario,
    *,
    corpus: Path | None,
    seed: int | None,
    fresh: bool,
    name: str | None,
    progress: Progress,
    workers: int = 0,
) -> dict[str, Any]:
    """Execute a scenario, or continue an unfinished run of the same inputs.

    Args:
        scenario_or_name: a scenario, the name of one that comes with fedmem, or the path of a TOML file.
        corpus: the user's own text, a JSONL file or a folder of them; None for the scenario's sources.
        seed: the seed; None for the scenario's own.
        fresh: start a new run even if an unfinished one has the same inputs.
        name: the name of the run; None for the scenario's name and a number.
        progress: called with (phase, done, total, note).
        workers: the number of processes that the devices run in; 0 for this process alone. A run may continue with
            another number.

    Returns:
        The content of `run.json`.

    Raises:
        UsageError: the scenario is unknown or contradicts itself, the corpus is corrupt, a package is missing, or the
            name is invalid or taken.
        Refused: the corpus has changed since the run began.
        Busy: another process executes this run.
        WorkerLost: a worker process died.
        StorageError: a file cannot be written.
        VerificationFailed: the finished run shows that a guarantee does not hold.
    """
    scenario = load(scenario_or_name) if isinstance(scenario_or_name, str) else from_dict(scenario_or_name.to_dict())
    inputs = {
        "id": secrets.token_hex(16),
        "scenario": scenario.to_dict(),
        "seed": scenario.seed if seed is None else seed,
        "corpus": str(corpus.resolve()) if corpus else None,
    }
    folder = _folder(inputs, scenario, fresh, name)
    sim = _prepare(folder, scenario, inputs, corpus, progress)
    sim.workers = workers
    lock = WriterLock(folder.root / "run.lock", "run")
    try:
        if folder.run_json.exists():
            data: dict[str, Any] = read_json(folder.run_json)
            return data
        keys.bind_corpus(sim)
        for phase, execute_phase in phases_of(scenario).items():
            if phase not in folder.facts():
                _execute(sim, phase, execute_phase)
        data = summarise_run(sim)
        write_report(data, folder.report)
        keys.destroy_key(sim)
        write_json(folder.run_json, data)
    finally:
        lock.release()
    check_guarantees(data)
    return data


def check_guarantees(data: dict[str, Any]) -> None:
    """Check the guarantees of a finished run.

    Args:
        data: the content of `run.json`.

    Raises:
        VerificationFailed: private text lies in the clear, the erasure does not verify, or the erased block still
            answers.
    """
    private, erasure = data["loss"]["private"], data["erasure"]
    faults = {
        "private text lies in the clear in the run folder": any(data["residue"].values()),
        "the erasure does not verify": bool(erasure) and not erasure["verified"],
        "the erased block still answers": bool(private) and private["after_erasure"] != private["without"],
    }
    for fault, has_occurred in faults.items():
        if has_occurred:
            raise VerificationFailed(f"The run {data['name']} ended, but {fault}; see its report, and report a bug.")


def _execute(sim: Simulation, phase: str, execute_phase: PhaseFunction) -> None:
    start = time.monotonic()
    facts = execute_phase(sim)
    sim.folder.finish_phase(phase, facts | {"seconds": round(time.monotonic() - start, 2)})


def _folder(inputs: Facts, scenario: Scenario, fresh: bool, name: str | None) -> RunFolder:
    if name is None:
        unfinished_run = None if fresh else runs.find_unfinished(inputs)
        return RunFolder(unfinished_run or paths.runs_dir() / runs.find_free_name(scenario.name))
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError("A run's name has letters, digits, '.', '_' and '-' only, and starts with a letter or digit.")
    folder = RunFolder(paths.runs_dir() / name)
    if folder.root.exists() and fresh:
        raise UsageError(f"There is a run {name} already; --fresh needs another name.")
    if folder.root.exists() and not (folder.is_run() and runs.have_same_inputs(folder.inputs(), inputs)):
        raise UsageError(f"There is a run {name} with other inputs; choose another name.")
    return folder


def _prepare(
    folder: RunFolder, scenario: Scenario, inputs: Facts, corpus: Path | None, progress: Progress
) -> Simulation:
    sim = Simulation(folder, scenario, inputs["seed"], corpus, progress)
    if not folder.root.exists():
        # Read all text first, so a corrupt corpus or a missing package leaves no incomplete run.
        progress("prepare", 0, 4, "reading text")
        _ = sim.population
        folder.create(inputs)
    return sim


def load_simulation(folder: RunFolder, progress: Progress) -> Simulation:
    """Return the simulation that lies in a run folder.

    Args:
        folder: the folder of a run.
        progress: called as `Progress` says.

    Raises:
        VerificationFailed: the inputs of the run are damaged.
    """
    inputs = folder.inputs()
    scenario = from_dict(inputs["scenario"])
    corpus = Path(inputs["corpus"]) if inputs["corpus"] else None
    return Simulation(folder, scenario, inputs["seed"], corpus, progress)
