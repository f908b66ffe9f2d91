"""The runs of the benchmark, each in a file of its own once it is finished.

Not in `__main__`: a spawned process does not import that one.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from benchmarks import harness
from benchmarks.private_utility import text
from benchmarks.private_utility.cells import Arm, Bench

PUBLIC = ("far", "near")


@dataclass(frozen=True)
class Job:
    """One run to do; an arm of None measures the anchor alone."""

    folder: Path
    steps: int
    notes: Path | None
    topic: str
    records: int
    seed: int
    arm: Arm | None

    @property
    def path(self) -> Path:
        """Return the path of its result."""
        return self.folder / f"{self.topic}-{self.records}-{self.seed}-{self.arm.name if self.arm else 'without'}.json"

    def loss(self) -> float:
        """Return the result of the finished run, in nats."""
        return float(json.loads(self.path.read_text(encoding="utf-8"))["loss"])


@cache
def _bench(folder: Path, steps: int) -> Bench:
    import torch

    torch.set_num_threads(1)
    return Bench(folder, steps)


def work(job: Job) -> None:
    """Do one run in this process."""
    bench = _bench(job.folder, job.steps)
    topic = _topic(bench, job)
    loss = bench.run(topic, job.arm) if job.arm else bench.without(topic)
    harness.finished(job.path, {"loss": loss})


def _topic(bench: Bench, job: Job) -> text.Topic:
    if job.topic in PUBLIC:
        found = bench.stand_ins[job.topic]
    elif job.notes and job.topic == "clinical":
        found = text.clinical(job.notes, job.seed)
    else:
        found = text.generated(job.topic, job.seed, job.records)
    return text.Topic(found.train[: job.records], found.heldout)


def done(jobs: Sequence[Job]) -> Sequence[Job]:
    """Run the unfinished jobs and return all. The first one makes the files that all share."""
    for job in [job for job in jobs if not job.path.exists()][:1]:
        work(job)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        harness.finish(jobs, work, pool, harness.progress)
    return jobs
