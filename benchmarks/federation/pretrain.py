"""Federated pretraining against central training at equal tokens: the scenarios themselves, one run a seed.

The curve over bytes is `pretrain` with fewer local steps in more rounds, one seed. A finished run lies in a folder,
so a broken-off benchmark goes on.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import harness
from benchmarks.claims.figures import interval
from fedmem.sim.scenario import folder, load
from fedmem.vault.fs import Files

CENTRAL, FEDERATED = "pretrain-central", ("pretrain", "pretrain-64")
SEEDS, QUICK_SEEDS = 3, 1
CURVE = (10, 32)
"""Local steps of a round, beside the scenario's own."""


@dataclass(frozen=True)
class Job:
    """One run of a scenario, or of `pretrain` with another number of local `steps` in a round."""

    folder: Path
    scenario: str
    seed: int
    steps: int = 0

    @property
    def name(self) -> str:
        """That of the run."""
        return f"{self.scenario}-{self.seed}" + (f"-{self.steps}" if self.steps else "")

    @property
    def path(self) -> Path:
        """Its result."""
        return self.folder / "runs" / self.name / "run.json"


def work(job: Job) -> None:
    """Do one run, or go on with it."""
    os.environ["FEDMEM_HOME"] = str(job.folder)
    from fedmem.sim.run import run

    chosen = str(_with_steps(job)) if job.steps else job.scenario
    run(chosen, corpus=None, seed=job.seed, fresh=False, name=job.name, progress=lambda *_: None)


def _with_steps(job: Job) -> Path:
    """The scenario with other local steps, as many in all; the rates rise at once."""
    f, text = load(job.scenario).federation, (folder() / f"{job.scenario}.toml").read_text(encoding="utf-8")
    head, rounds = text.split("[federation]")
    rounds = rounds.replace(f"rounds = {f.rounds}\n", f"rounds = {f.rounds * f.steps // job.steps}\n", 1)
    rounds = rounds.replace(f"steps = {f.steps} ", f"steps = {job.steps} ", 1)
    rounds = rounds.replace(f"warmup = {f.warmup}\n", "warmup = 1\n", 1)
    path = job.folder / f"{job.scenario}-{job.steps}.toml"
    Files().make_folder(job.folder)
    Files().replace(path, f"{head}[federation]{rounds}".encode())
    return path


def pretrained(quick: bool) -> dict[str, Any]:
    """Losses over central training's by scenario, and bytes below an exchange of gradients each step."""
    home = harness.kept("x").parent / "federation"
    seeds, chosen = range(QUICK_SEEDS if quick else SEEDS), FEDERATED[:1] if quick else FEDERATED
    jobs = [Job(home, name, seed) for seed in seeds for name in (CENTRAL, *chosen)]
    curve = [] if quick else [Job(home, chosen[0], 0, steps) for steps in CURVE]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        harness.finish([*jobs, *curve], work, pool, harness.progress)
    found = {(job.scenario, job.seed): _read(job.path) for job in jobs}
    over = {name: [_loss(found[name, seed]) / _loss(found[CENTRAL, seed]) for seed in seeds] for name in chosen}
    below = {name: found[name, 0]["bytes"]["below_per_step"] for name in chosen}
    return {
        "loss_over_central": fmean(over[chosen[0]]),
        "by_devices": {name: fmean(values) for name, values in over.items()},
        "interval": {name: interval(values) for name, values in over.items()},
        "below_per_step": below,
        "curve": [_point(job, found[CENTRAL, 0]) for job in [*curve, Job(home, chosen[0], 0)]],
        "loss": {f"{name} {seed}": _loss(data) for (name, seed), data in found.items()},
    }


def _point(job: Job, central: dict[str, Any]) -> dict[str, float]:
    run = _read(job.path)
    return {"below_per_step": run["bytes"]["below_per_step"], "loss_over_central": _loss(run) / _loss(central)}


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _loss(run: dict[str, Any]) -> float:
    """Held-out loss with the fetched blocks, in nats."""
    return float(run["loss"]["public"]["fetched"])
