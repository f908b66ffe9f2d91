"""The runs that the claims need. Running them is resumable: each finished run has a file.

Every arm picks its learning rate from the same three (`RATES`) on the first seed, by held-out loss, and keeps it for
the other seeds. The anchor under all memory arms is pretrained with the rate that `none` picked.

Invariants
- A finished run is never run again; a killed benchmark goes on with the next.
- Arms are compared at equal tokens, on the same held-out text and the same seeds.
"""

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.claims.cells import Arm, Bench, Scale, run
from benchmarks.claims.text import load
from fedmem.anchor.presets import Shape

RATES = (1e-3, 3e-3, 1e-2)
FULL = Scale("full", 0, 1000, 3000, 4, 128, 2048, 16, (40, 24))
QUICK = Scale("quick", 3000, 100, 320, 4, 128, 2048, 16, (40, 24))

NONE = Arm("none")
# As deep as the anchor and wider, as the paper's larger model is wider; of the shapes tried it was the best.
PLAIN = [
    Arm("plain-2.6", Shape(layers=2, d_model=128, ffn=384, heads=4)),
    Arm("plain-1.7", Shape(layers=2, d_model=96, ffn=288, heads=3)),
]
COTRAINED = Arm("cotrained", kind="ffn", controls=True)
# A frozen anchor learns nothing later, so it gets three quarters of the tokens; the others learn beside their memory.
FROZEN = Arm("frozen", kind="ffn", frozen=True, anchor_share=0.75, controls=True)
RANDOM = Arm("random_clusters", kind="ffn", random=True)
# Equal values in a fetch: a row of LoRA or KV memory is longer or shorter than one of FFN memory.
KINDS = [
    Arm("lora_ffn", kind="lora_ffn", widths=((10, 10), (6, 6))),
    Arm("lora_qk", kind="lora_qk", widths=((30, 30), (18, 18))),
    Arm("lora_vo", kind="lora_vo", widths=((30, 30), (18, 18))),
    Arm("kv", kind="kv", widths=((60, 60), (36, 36))),
]
# One thing changed each, at the co-trained arm's rate.
VARIANTS = [
    Arm("early", kind="ffn", widths=((80, 0), (48, 0)), rate_of="cotrained"),
    Arm("late", kind="ffn", widths=((0, 80), (0, 48)), rate_of="cotrained"),
    Arm("flat", kind="ffn", widths=((64, 64),), rate_of="cotrained"),
    Arm("flat_wide", kind="ffn", widths=((64, 64),), branching=32, rate_of="cotrained"),
    Arm("three_levels", kind="ffn", widths=((40, 40), (16, 16), (8, 8)), branching=8, rate_of="cotrained"),
    # A larger anchor wants a lower rate: that of the plain models of its width.
    Arm("larger_anchor", Shape(3, 96, 288, 3), kind="ffn", rate_of="cotrained", anchor_lr=3e-3),
]


def arms(quick: bool) -> list[Arm]:
    """Return every arm; the quick ladder leaves out what the keys of its output do not need."""
    first = [NONE, PLAIN[0], COTRAINED, FROZEN, RANDOM, *KINDS]
    return first if quick else [*first, *PLAIN[1:], *VARIANTS]


@dataclass(frozen=True)
class Job:
    """One run to do."""

    scale: Scale
    arm: Arm
    seed: int
    lr: float
    start_lr: float
    folder: Path

    @property
    def path(self) -> Path:
        """Return the path of its result."""
        return self.folder / f"{self.arm.name}-{self.seed}-{self.lr:g}.json"

    def result(self) -> dict[str, Any]:
        """Return the result of the finished run."""
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found


@cache
def _bench(scale: Scale, folder: Path) -> Bench:
    """Return text, tokenizer and tree of a scale, once for each process, on one thread."""
    import torch

    from fedmem.cli.allocator import keep_buffers

    keep_buffers()
    torch.set_num_threads(1)
    return Bench(scale, load(scale.documents), folder)


def work(job: Job) -> None:
    """Do one run in this process."""
    found = run(_bench(job.scale, job.folder), job.arm, job.seed, job.lr, job.start_lr)
    harness.finished(job.path, found)


def loss_of(arm: Arm, found: dict[str, Any]) -> float:
    """Return the figure by which arms are chosen and compared."""
    return float(found["fetched"] if arm.kind else found["loss"])


class Ladder:
    """The runs of one scale: rates first, on the first seed, then the other seeds."""

    def __init__(self, scale: Scale, folder: Path, seeds: int, pool: Executor, progress: Callable[[str], None]) -> None:
        self.scale, self.folder, self.seeds, self.pool, self.progress = scale, folder, seeds, pool, progress
        self.rates = RATES if scale is FULL else (RATES[1],)
        folder.mkdir(parents=True, exist_ok=True)

    def results(self, chosen: list[Arm]) -> dict[str, list[dict[str, Any]]]:
        """Return for each arm the result of each seed, at the arm's rate."""
        start_lr = self._pick([NONE], self.rates[0])[NONE.name]
        # The shared anchors first, one run for each, so that no two processes make the same.
        self._finish([self._job(COTRAINED, seed, self.rates[0], start_lr) for seed in range(self.seeds)])
        picked = self._pick([arm for arm in chosen if not arm.rate_of], start_lr)
        picked |= {arm.name: picked[arm.rate_of] for arm in chosen if arm.rate_of}
        jobs = {a.name: [self._job(a, s, picked[a.name], start_lr) for s in range(self.seeds)] for a in chosen}
        self._finish([job for some in jobs.values() for job in some])
        return {name: [job.result() | {"lr": job.lr} for job in some] for name, some in jobs.items()}

    def _pick(self, chosen: list[Arm], start_lr: float) -> dict[str, float]:
        jobs = {arm.name: [self._job(arm, 0, lr, start_lr) for lr in self.rates] for arm in chosen}
        self._finish([job for some in jobs.values() for job in some])
        return {name: min(some, key=lambda job: loss_of(job.arm, job.result())).lr for name, some in jobs.items()}

    def _finish(self, jobs: list[Job]) -> None:
        harness.finish(jobs, work, self.pool, self.progress)

    def _job(self, arm: Arm, seed: int, lr: float, start_lr: float) -> Job:
        return Job(self.scale, arm, seed, lr, start_lr, self.folder)
