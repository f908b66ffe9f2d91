"""Train a bank under a frozen anchor as independent jobs, and merge their parts [docs/method.md, §4].

One job for each level-1 subtree trains the blocks of this subtree on its rows. One more job trains the generic block
on all rows. The steps of a subtree's job are proportional to its rows. The generic block gets 1 / k of all steps: in
co-training it is used about as often.

Invariants
- The result of a job is a function of (release, its rows, settings, seed, its name). Other jobs, their order and the
  machine have no effect.
- The result of a job is one file, `parts/<job>.safetensors`. It names the inputs of the training; merging checks it.
- Together the jobs train every block of the bank once.

    for name in job_names(spec):
        run_job(training, name, watch)
    bank = merge_parts(training)

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
from fedmem.training.seeds import derive_seed
from fedmem.training.settings import Settings, TrainedParts
from fedmem.training.state import TrainingTrace, Watch, read_json, write_json

GENERIC = "generic"


@dataclass(frozen=True)
class SubtreeTraining:
    """The inputs that all jobs of a training share.

    Attributes:
        release: the release to start from.
        train: rows to train on, with their paths.
        heldout: held-out rows, with their paths.
        settings: settings of the whole training; `steps` is split among the jobs.
        seed: seed of the training.
        out: folder of the training.
        inputs: digest of the inputs of the training.
    """

    release: Release
    train: Rows
    heldout: Rows
    settings: Settings
    seed: int
    out: Path
    inputs: str

    @cached_property
    def anchor(self) -> tuple[PreTrainedModel, Memory]:
        """The frozen anchor with a memory attached. All jobs read it and none changes it."""
        model = self.release.anchor()
        return model, attach(model)

    def part(self, name: str) -> Path:
        """Return the path of a job's part.

        Args:
            name: the name of the job, one of `job_names`.
        """
        return self.out / "parts" / f"{name}.safetensors"


@dataclass(frozen=True)
class Job:
    """The work of one job.

    Attributes:
        start: the blocks to start from, as a bank of their own.
        train: rows to train on; their paths count from the first block of `start`.
        heldout: held-out rows, numbered in the same way.
        steps: number of steps; 0 if the job has no rows.
    """

    start: BankStream
    train: Rows
    heldout: Rows
    steps: int


def subtree_name(subtree: int) -> str:
    """Return the name of the job of a subtree.

    Args:
        subtree: number of the subtree, 0 to k - 1.
    """
    return f"subtree-{subtree}"


def job_names(spec: MemorySpec) -> list[str]:
    """Return the names of all jobs of a bank: its subtrees in order, then the generic block.

    Args:
        spec: the shape of the bank.
    """
    return [*(subtree_name(subtree) for subtree in range(spec.branching)), GENERIC]


def run_job(training: SubtreeTraining, name: str, watch: Watch) -> None:
    """Run the remaining steps of a job and write its part. If the part exists, check it and do nothing else.

    Args:
        training: the inputs of all jobs.
        name: the name of the job, one of `job_names`.
        watch: callbacks for progress and figures.

    Raises:
        UsageError: no job has this name.
        VerificationFailed: the existing part is damaged.
        VersionMismatch: the existing part, or the state of the job, belongs to other inputs.
    """
    if name not in job_names(training.release.spec):
        raise UsageError(
            f"There is no job {name}: this bank's subtrees are 0 to {training.release.spec.branching - 1}."
        )
    with ResumableRun(training.out / "state" / name, training.inputs, name) as run:
        if training.part(name).exists():
            read_part(training, name)
            return
        job = _generic_job(training) if name == GENERIC else _subtree_job(training, int(name.rpartition("-")[2]))
        settings = replace(training.settings, steps=job.steps)
        trace = (
            run.drive(_trainer(training, job, settings, name, run), job.heldout, watch)
            if job.steps
            else TrainingTrace()
        )
        tokens = job.train.tokens(job.steps, settings.batch, derive_seed(training.seed, name))
        write_json(training.part(name).with_suffix(".json"), asdict(trace) | {"tokens": tokens, "steps": job.steps})
        _write_part(training, name, run.trained(job.start) if job.steps else job.start)
        run.remove_state()


def _trainer(training: SubtreeTraining, job: Job, settings: Settings, name: str, run: ResumableRun) -> Trainer:
    model, memory = training.anchor
    levels, no_generic = run.levels(job.start), LazyAdamW(torch.empty(0, job.start.spec.fetch_size))
    trained = TrainedParts(anchor=False, levels=frozenset(range(1, len(levels) + 1)), generic=False)
    bank = BankTrainer(memory, job.start.spec, levels, no_generic, job.train.paths_MP, settings, trained)
    return Trainer(model, job.train.packed, settings, derive_seed(training.seed, name), bank, anchor=False)


def _subtree_job(training: SubtreeTraining, subtree: int) -> Job:
    """Return the job of a subtree. Its blocks and paths are numbered from the first block of the subtree."""
    release, spec = training.release, training.release.spec
    first_P = np.array([subtree * spec.branching**level for level in range(spec.levels)])

    def pieces(level: int) -> Iterator[Tensor]:
        for first, last in start.spans(level):
            yield release.bank.blocks(level, *(int(first_P[level - 1]) + number for number in (first, last)))

    start = BankStream(spec, pieces, release.bank.generic(), root=1)
    train, heldout = (_rows_of_subtree(rows, subtree, first_P) for rows in (training.train, training.heldout))
    steps = max(1, round(training.settings.steps * len(train) / len(training.train))) if len(train) else 0
    return Job(start, train, heldout, steps)


def _rows_of_subtree(rows: Rows, subtree: int, first_P: np.ndarray) -> Rows:
    selected = rows.select(rows.paths_MP[:, 0] == subtree)
    return Rows(selected.packed, selected.paths_MP - first_P)


def _generic_job(training: SubtreeTraining) -> Job:
    """Return the job of the generic block: a bank of one block as wide as a whole fetch, which every row fetches."""
    spec = training.release.spec
    generic_spec = MemorySpec(spec.kind, spec.shape, 1, (tuple(map(sum, zip(*spec.widths, strict=True))),))
    train, heldout = (
        Rows(rows.packed, np.zeros((len(rows), 1), dtype=np.int64)) for rows in (training.train, training.heldout)
    )
    steps = max(1, round(training.settings.steps / spec.branching))
    generic_X = training.release.bank.generic()
    return Job(BankStream(generic_spec, lambda _: [generic_X[None]], generic_X), train, heldout, steps)


def _write_part(training: SubtreeTraining, name: str, bank: BankStream) -> None:
    """Write the blocks of a job in bf16, as the bank will hold them. All of it (1 / k of the bank) is in memory."""
    numbers = range(1, bank.spec.levels + 1)
    tensors = {f"level-{n}": torch.cat([piece.to(torch.bfloat16) for piece in bank.pieces(n)]) for n in numbers}
    # One metadata entry: safetensors writes several in no fixed order.
    header = canonical_json({"inputs": training.inputs, "job": name, "sha256": _digest(tensors)}).decode()
    Files().make_folder(training.part(name).parent)
    Files().replace(training.part(name), save(tensors, metadata={"part": header}))


def read_part(training: SubtreeTraining, name: str) -> list[Tensor]:
    """Return the blocks of a job by level, each `[N, X]`, float32.

    Args:
        training: the inputs of all jobs.
        name: the name of the job, one of `job_names`.

    Raises:
        VerificationFailed: the part is damaged.
        VersionMismatch: the part belongs to another training.
    """
    path = training.part(name)
    damaged = f"{path} is damaged; remove it, and the job is run again."
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["part"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a mapping
    except (SafetensorError, ValueError, KeyError) as error:
        raise VerificationFailed(damaged) from error
    if header.get("sha256") != _digest(tensors):
        raise VerificationFailed(damaged)
    if (header.get("inputs"), header.get("job")) != (training.inputs, name):
        raise VersionMismatch(f"{path} is of a training with other inputs; take the part of this one, or remove it.")
    return [tensors[f"level-{number}"].float() for number in range(1, len(tensors) + 1)]


def _digest(tensors: dict[str, Tensor]) -> str:
    sha256 = hashlib.sha256(canonical_json({name: list(tensor.shape) for name, tensor in tensors.items()}))
    for _, tensor in sorted(tensors.items()):
        sha256.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def merge_parts(training: SubtreeTraining) -> BankStream:
    """Return the parts of all jobs as one bank: a level holds the blocks of its subtrees in order.

    Args:
        training: the inputs of all jobs; every job has written its part.

    Raises:
        VerificationFailed, VersionMismatch: as `read_part`.
    """
    *subtrees, generic = job_names(training.release.spec)

    def pieces(level: int) -> Iterator[Tensor]:
        return (read_part(training, name)[level - 1] for name in subtrees)

    return BankStream(training.release.spec, pieces, read_part(training, generic)[0][0])


def read_job_facts(training: SubtreeTraining) -> list[dict[str, Any]]:
    """Return curve, seconds, tokens and steps of each job, in the order of the jobs.

    Args:
        training: the inputs of all jobs; every job has finished.
    """
    return [read_json(training.part(name).with_suffix(".json")) for name in job_names(training.release.spec)]
