"""Federated pretraining against central training at equal tokens: the scenarios themselves, one run a seed.

The curve over bytes is `pretrain` with as many local steps in more or fewer rounds, one seed. A finished run lies in a
folder, so a broken-off benchmark goes on.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import harness
from benchmarks.claims.figures import interval
from fedmem.sim.scenario import Scenario, load

CENTRAL, FEDERATED = "pretrain-central", ("pretrain", "pretrain-64")
SEEDS, QUICK_SEEDS = 3, 1
CURVE = {"126 rounds": (126, 10, 0), "36 rounds": (36, 35, 0), "6 rounds": (6, 640, 20)}
"""Rounds, their local steps, and those of the first one, beside the scenario's own."""


@dataclass(frozen=True)
class Job:
    """One run of a scenario, or of `pretrain` at a `point` of the curve."""

    folder: Path
    scenario: str
    seed: int
    point: str = ""

    @property
    def name(self) -> str:
        """That of the run."""
        return f"{self.scenario}-{self.seed}" + (f"-{self.point.replace(' ', '-')}" if self.point else "")

    @property
    def path(self) -> Path:
        """Its result."""
        return self.folder / "runs" / self.name / "run.json"

    def terms(self) -> Scenario:
        """What is run; rates rise at once where there are few steps to a round."""
        chosen = load(self.scenario)
        if not self.point:
            return chosen
        rounds, steps, first = CURVE[self.point]
        warmup = chosen.federation.warmup if first else 1
        f = replace(chosen.federation, rounds=rounds, steps=steps, first_steps=first, warmup=warmup)
        return replace(chosen, federation=f)


def work(job: Job) -> None:
    """Do one run, or go on with it."""
    os.environ["FEDMEM_HOME"] = str(job.folder)
    from fedmem.sim.run import run

    run(job.terms(), corpus=None, seed=job.seed, fresh=False, name=job.name, progress=lambda *_: None)


def pretrained(quick: bool) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Losses over central training's by scenario, bytes below an exchange of gradients each step, and intervals."""
    home = harness.kept("x").parent / "federation"
    seeds, chosen = range(QUICK_SEEDS if quick else SEEDS), FEDERATED[:1] if quick else FEDERATED
    jobs = [Job(home, name, seed) for seed in seeds for name in (CENTRAL, *chosen)]
    curve = [] if quick else [Job(home, chosen[0], 0, point) for point in CURVE]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        harness.finish([*jobs, *curve], work, pool, harness.progress)
    found = {(job.scenario, job.seed): _read(job.path) for job in jobs}
    over = {name: [_loss(found[name, seed]) / _loss(found[CENTRAL, seed]) for seed in seeds] for name in chosen}
    below = {name: found[name, 0]["bytes"]["below_per_step"] for name in chosen}
    facts = {
        "loss_over_central": fmean(over[chosen[0]]),
        "by_devices": {name: fmean(values) for name, values in over.items()},
        "below_per_step": below,
        "curve": [_point(job, found[CENTRAL, 0]) for job in [*curve, Job(home, chosen[0], 0)]],
        "loss": {f"{name} {seed}": _loss(data) for (name, seed), data in found.items()},
    }
    spread = {f"by_devices.{name}": interval(values) for name, values in over.items()}
    return facts, spread | {"loss_over_central": interval(over[chosen[0]])}


def _point(job: Job, central: dict[str, Any]) -> dict[str, float]:
    run = _read(job.path)
    return {"below_per_step": run["bytes"]["below_per_step"], "loss_over_central": _loss(run) / _loss(central)}


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _loss(run: dict[str, Any]) -> float:
    """Held-out loss with the fetched blocks, in nats."""
    return float(run["loss"]["public"]["fetched"])
