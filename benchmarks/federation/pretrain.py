"""Federated pretraining against central training at equal tokens: the scenarios themselves, one run a seed.

The curve over bytes is `pretrain` with as many local steps in more or fewer rounds, one seed. A finished run lies in a
folder, so a broken-off benchmark goes on.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec.structs import replace

from benchmarks import harness
from benchmarks.claims.figures import interval
from fedmem.errors import UsageError
from fedmem.sim.scenario import Scenario, load
from fedmem.sim.terms import steps_by_round

CENTRAL, FEDERATED = "pretrain-central", ("pretrain", "pretrain-64")
SEEDS, QUICK_SEEDS = 3, 1
WANTED = 1.02
POINTS = {
    "126 rounds": (126, 10, 0, 1),
    "36 rounds": (36, 35, 0, 1),
    "6 rounds": (6, 640, 20, 10),
    "3 rounds": (3, 80, 20, 10),
}
"""Rounds, their local steps, those of the first one, and those in which a round's rates rise."""
CURVE, SHORT = ("126 rounds", "36 rounds", "6 rounds"), "3 rounds"
"""The points that have the steps of the scenario, beside its own; and what a quick run has."""


@dataclass(frozen=True)
class Job:
    """One run of a scenario, unchanged or at a point of `POINTS`."""

    folder: Path
    scenario: str
    seed: int
    point: str = ""

    @property
    def name(self) -> str:
        """Return the name of the run."""
        return f"{self.scenario}-{self.seed}" + (f"-{self.point.replace(' ', '-')}" if self.point else "")

    @property
    def path(self) -> Path:
        """Return the path of its result."""
        return self.folder / "runs" / self.name / "run.json"

    def terms(self) -> Scenario:
        """Return the scenario to run. Central training takes the same number of steps."""
        chosen = load(self.scenario)
        if not self.point:
            return chosen
        rounds, steps, first, warmup = POINTS[self.point]
        f = replace(chosen.federation, rounds=rounds, steps=steps, first_steps=first, warmup=warmup)
        if chosen.cotrain.pooled:
            return replace(chosen, cotrain=replace(chosen.cotrain, steps=sum(steps_by_round(f))))
        return replace(chosen, federation=f)


def work(job: Job) -> None:
    """Do one run, or continue it."""
    os.environ["FEDMEM_HOME"] = str(job.folder)
    from fedmem.sim.run import run_scenario

    run_scenario(job.terms(), corpus=None, seed=job.seed, fresh=False, name=job.name, progress=lambda *_: None)


def pretrained(quick: bool) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return losses over central training's by scenario, the reduction in bytes, and intervals."""
    home, point = harness.kept("x").parent / "federation", SHORT if quick else ""
    seeds, chosen = range(QUICK_SEEDS if quick else SEEDS), FEDERATED[:1] if quick else FEDERATED
    jobs = [Job(home, name, seed, point) for seed in seeds for name in (CENTRAL, *chosen)]
    curve = [] if quick else [Job(home, chosen[0], 0, other) for other in CURVE]
    for job in (*jobs, *curve):
        _refuse_other_terms(job)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        harness.finish([*jobs, *curve], work, pool, harness.progress)
    found = {(job.scenario, job.seed): _read(job.path) for job in jobs}
    over = {name: [_loss(found[name, seed]) / _loss(found[CENTRAL, seed]) for seed in seeds] for name in chosen}
    below = {name: found[name, 0]["bytes"]["below_per_step"] for name in chosen}
    facts = {
        "loss_over_central": fmean(over[chosen[0]]),
        "by_devices": {name: fmean(values) for name, values in over.items()},
        "below_per_step": below,
        "curve": [_point(job, found[CENTRAL, 0]) for job in [*curve, Job(home, chosen[0], 0, point)]],
        "loss": {f"{name} {seed}": _loss(data) for (name, seed), data in found.items()},
    }
    spread = {f"by_devices.{name}": interval(values) for name, values in over.items()}
    return facts, spread | {"loss_over_central": interval(over[chosen[0]])}


def _refuse_other_terms(job: Job) -> None:
    """Refuse a run that was made before the scenario changed."""
    if job.path.exists() and _read(job.path)["config"] != job.terms().to_dict():
        raise UsageError(f"{job.path.parent} holds a run of other terms. Delete that folder and run again.")


def _point(job: Job, central: dict[str, Any]) -> dict[str, float]:
    run, rounds = _read(job.path), job.terms().federation.rounds
    below = run["bytes"]["below_per_step"]
    return {"rounds": rounds, "below_per_step": below, "loss_over_central": _loss(run) / _loss(central)}


def _read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _loss(run: dict[str, Any]) -> float:
    """Return held-out loss with the fetched blocks, in nats."""
    return float(run["loss"]["public"]["fetched"])


def plot(pretrain: Mapping[str, Any], path: Path) -> None:
    """Plot the loss over central training's against the reduction in bytes."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fedmem"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    points = pretrain["curve"]
    axes.plot([p["below_per_step"] for p in points], [p["loss_over_central"] for p in points], "o")
    for point in points:
        at = (point["below_per_step"], point["loss_over_central"])
        axes.annotate(f"{point['rounds']} rounds", at, xytext=(0, 7), textcoords="offset points", ha="center")
    axes.axhline(WANTED, color="gray", linestyle=":", linewidth=1, label="what we aim at")
    axes.legend(frameon=False)
    axes.set(xscale="log", xlabel="times fewer bytes than gradients of each step", ylabel="loss / central training's")
    axes.margins(0.12, 0.15)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
