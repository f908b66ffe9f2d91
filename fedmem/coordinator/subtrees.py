"""A bank under a frozen anchor, trained as independent jobs that merge to the same bytes [docs/method.md, §4].

One job per level-1 subtree trains its blocks on its rows; one more trains the generic block on all rows. A job's
steps are its share of the rows, the generic block's a k-th of all: with a moving anchor it stands in as often.

Invariants
- A job is a function of (release, its rows, settings, seed, its own name): no other job, order or machine matters.
- What a job made is one file, `parts/<job>.safetensors`: tied to the training's inputs, checked when it is merged.
- Together the jobs train every block of the bank once.

    for name in job_names(spec):
        run_job(training, name, watch)
    bank = merged(training)

Shapes: N blocks, X values of a block or a fetch, M rows, P levels.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.errors import UsageError, VerificationFailed, VersionMismatch
from fedmem.memory.attach import Memory, attach
from fedmem.memory.spec import MemorySpec
from fedmem.storage.canonical import canonical_json
from fedmem.storage.files import Files
from fedmem.training.bank_state import BankStream
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Trainer
from fedmem.training.packed_dataset import Rows
from fedmem.training.release import Release
from fedmem.training.resumable import ResumableRun
from fedmem.training.seeds import derived
from fedmem.training.settings import Settings, Trained
from fedmem.training.state import TrainingTrace, Watch, read_json, write_json

GENERIC = "generic"


@dataclass(frozen=True)
class SubtreeTraining:
    """What every job of a training has at hand: the release it starts from, rows, settings, and where it works."""

    release: Release
    train: Rows
    heldout: Rows
    settings: Settings
    seed: int
    out: Path
    inputs: str

    @cached_property
    def anchor(self) -> tuple[PreTrainedModel, Memory]:
        """The frozen anchor with a memory attached; every job reads it and none changes it."""
        model = self.release.anchor()
        return model, attach(model)

    def part(self, name: str) -> Path:
        """Where a job leaves its blocks."""
        return self.out / "parts" / f"{name}.safetensors"


@dataclass(frozen=True)
class Job:
    """One job: the blocks it starts from, as a bank of its own, its rows and its steps."""

    start: BankStream
    train: Rows
    heldout: Rows
    steps: int


def subtree_name(subtree: int) -> str:
    """The name of a subtree's job."""
    return f"subtree-{subtree}"


def job_names(spec: MemorySpec) -> list[str]:
    """All jobs of a bank: its subtrees in order, then the generic block."""
    return [*(subtree_name(subtree) for subtree in range(spec.branching)), GENERIC]


def run_job(training: SubtreeTraining, name: str, watch: Watch) -> None:
    """Run what is left of a job; nothing where its part is there. Raises UsageError for a job that does not exist."""
    if name not in job_names(training.release.spec):
        raise UsageError(
            f"There is no job {name}: this bank's subtrees are 0 to {training.release.spec.branching - 1}."
        )
    with ResumableRun(training.out / "state" / name, training.inputs, name) as run:
        if training.part(name).exists():
            read_part(training, name)
            return
        job = _generic(training) if name == GENERIC else _subtree(training, int(name.rpartition("-")[2]))
        settings = replace(training.settings, steps=job.steps)
        trace = (
            run.drive(_trainer(training, job, settings, name, run), job.heldout, watch)
            if job.steps
            else TrainingTrace()
        )
        tokens = job.train.tokens(job.steps, settings.batch, derived(training.seed, name))
        write_json(training.part(name).with_suffix(".json"), asdict(trace) | {"tokens": tokens, "steps": job.steps})
        _write_part(training, name, run.trained(job.start) if job.steps else job.start)
        run.remove_state()


def _trainer(training: SubtreeTraining, job: Job, settings: Settings, name: str, run: ResumableRun) -> Trainer:
    model, memory = training.anchor
    levels, none = run.levels(job.start), LazyAdamW(torch.empty(0, job.start.spec.fetch_size))
    trained = Trained(anchor=False, levels=frozenset(range(1, len(levels) + 1)), generic=False)
    bank = BankTrainer(memory, job.start.spec, levels, none, job.train.paths_MP, settings, trained)
    return Trainer(model, job.train.packed, settings, derived(training.seed, name), bank, anchor=False)


def _subtree(training: SubtreeTraining, subtree: int) -> Job:
    """The blocks and rows below one node of level 1, both counted from the node's first."""
    release, spec = training.release, training.release.spec
    first_P = np.array([subtree * spec.branching**level for level in range(spec.levels)])

    def pieces(level: int) -> Iterator[Tensor]:
        for first, last in start.spans(level):
            yield release.bank.blocks(level, *(int(first_P[level - 1]) + number for number in (first, last)))

    start = BankStream(spec, pieces, release.bank.generic(), root=1)
    train, heldout = (_below(rows, subtree, first_P) for rows in (training.train, training.heldout))
    steps = max(1, round(training.settings.steps * len(train) / len(training.train))) if len(train) else 0
    return Job(start, train, heldout, steps)


def _below(rows: Rows, subtree: int, first_P: np.ndarray) -> Rows:
    own = rows.select(rows.paths_MP[:, 0] == subtree)
    return Rows(own.packed, own.paths_MP - first_P)


def _generic(training: SubtreeTraining) -> Job:
    """The generic block as a bank of one block that every row fetches: a fetch and a block of its width look alike."""
    spec = training.release.spec
    whole = MemorySpec(spec.kind, spec.shape, 1, (tuple(map(sum, zip(*spec.widths, strict=True))),))
    train, heldout = (
        Rows(rows.packed, np.zeros((len(rows), 1), dtype=np.int64)) for rows in (training.train, training.heldout)
    )
    steps = max(1, round(training.settings.steps / spec.branching))
    generic_X = training.release.bank.generic()
    return Job(BankStream(whole, lambda _: [generic_X[None]], generic_X), train, heldout, steps)


def _write_part(training: SubtreeTraining, name: str, bank: BankStream) -> None:
    """Keep the job's blocks as the bank will: bf16. A part passes through memory: a k-th of the bank."""
    numbers = range(1, bank.spec.levels + 1)
    tensors = {f"level-{n}": torch.cat([piece.to(torch.bfloat16) for piece in bank.pieces(n)]) for n in numbers}
    # One entry: safetensors writes several in no fixed order.
    about = canonical_json({"inputs": training.inputs, "job": name, "sha256": _digest(tensors)}).decode()
    Files().make_folder(training.part(name).parent)
    Files().replace(training.part(name), save(tensors, metadata={"part": about}))


def read_part(training: SubtreeTraining, name: str) -> list[Tensor]:
    """A job's blocks by level, float32.

    Raises VerificationFailed for a damaged part, VersionMismatch for one of another training.
    """
    path = training.part(name)
    damaged = f"{path} is damaged; remove it, and the job is run again."
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["part"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a mapping
    except (SafetensorError, ValueError, KeyError) as error:
        raise VerificationFailed(damaged) from error
    if about.get("sha256") != _digest(tensors):
        raise VerificationFailed(damaged)
    if (about.get("inputs"), about.get("job")) != (training.inputs, name):
        raise VersionMismatch(f"{path} is of a training with other inputs; take the part of this one, or remove it.")
    return [tensors[f"level-{number}"].float() for number in range(1, len(tensors) + 1)]


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(canonical_json({name: list(tensor.shape) for name, tensor in tensors.items()}))
    for _, tensor in sorted(tensors.items()):
        found.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def merged(training: SubtreeTraining) -> BankStream:
    """All parts as one bank: a level is its subtrees' blocks in their order. Raises as `read_part`."""
    *subtrees, generic = job_names(training.release.spec)

    def pieces(level: int) -> Iterator[Tensor]:
        return (read_part(training, name)[level - 1] for name in subtrees)

    return BankStream(training.release.spec, pieces, read_part(training, generic)[0][0])


def traces(training: SubtreeTraining) -> list[dict[str, Any]]:
    """What each job has to tell, in the order of the jobs: its curve, seconds, tokens and steps."""
    return [read_json(training.part(name).with_suffix(".json")) for name in job_names(training.release.spec)]
