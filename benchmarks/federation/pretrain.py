"""Federated pretraining against central training at equal tokens: the scenarios themselves, one run a seed.

A finished run lies in a folder, so a broken-off benchmark goes on.
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

CENTRAL, FEDERATED = "pretrain-central", ("pretrain", "pretrain-64")
SEEDS, QUICK_SEEDS = 3, 1


@dataclass(frozen=True)
class Job:
    """One run of a scenario."""

    folder: Path
    scenario: str
    seed: int

    @property
    def path(self) -> Path:
        """Its result."""
        return self.folder / "runs" / f"{self.scenario}-{self.seed}" / "run.json"


def work(job: Job) -> None:
    """Do one run, or go on with it."""
    os.environ["FEDMEM_HOME"] = str(job.folder)
    from fedmem.sim.run import run

    name = f"{job.scenario}-{job.seed}"
    run(job.scenario, corpus=None, seed=job.seed, fresh=False, name=name, progress=lambda *_: None)


def pretrained(quick: bool) -> dict[str, Any]:
    """Losses over central training's by scenario, and bytes below an exchange of gradients each step."""
    folder = harness.kept("x").parent / "federation"
    seeds, chosen = range(QUICK_SEEDS if quick else SEEDS), FEDERATED[:1] if quick else FEDERATED
    jobs = [Job(folder, name, seed) for seed in seeds for name in (CENTRAL, *chosen)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        harness.finish(jobs, work, pool, harness.progress)
    found = {(job.scenario, job.seed): _read(job.path) for job in jobs}
    over = {name: [_loss(found[name, seed]) / _loss(found[CENTRAL, seed]) for seed in seeds] for name in chosen}
    below = {name: found[name, 0]["bytes"]["below_per_step"] for name in chosen}
    return {
        "loss_over_central": fmean(over[chosen[0]]),
        "by_devices": {name: fmean(values) for name, values in over.items()},
        "interval": {name: interval(values) for name, values in over.items()},
        "below_per_step": below,
        "loss": {f"{name} {seed}": _loss(data) for (name, seed), data in found.items()},
    }


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _loss(run: dict[str, Any]) -> float:
    """Held-out loss with the fetched blocks, in nats."""
    return float(run["loss"]["public"]["fetched"])
