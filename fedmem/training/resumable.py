"""Run a trainer to its end: write checkpoints, record the curve, and resume after a crash.

Invariants
- A run that was cut at any step and started again gives the same bytes and the same curve as a run without a break.
- One process at a time works on the state of a run.
- A run uses one thread. With several threads the split of a float sum was seen to change under load (I9).

    with ResumableRun(folder, claim(out, inputs), "anchor") as run:
        trace = run.drive(trainer, heldout, Watch())
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fedmem.errors import QualityGateFailed, VerificationFailed
from fedmem.storage.files import Files
from fedmem.storage.locks import WriterLock
from fedmem.training.bank_state import BankStream
from fedmem.training.checkpoint import load_checkpoint, save_checkpoint, step_of
from fedmem.training.heldout import heldout_loss
from fedmem.training.lazy_adamw import LazyAdamW, Level
from fedmem.training.loop import Trainer
from fedmem.training.packed_dataset import Rows
from fedmem.training.state import TrainingTrace, Watch, read_json, write_json
from fedmem.training.working_set import DiskLevel

STOPS, MOST_STEPS = 20, 200
"""A run measures and saves about `STOPS` times, and at least every `MOST_STEPS` steps."""
ON_DISK = 2**30
"""A level that takes more bytes than this, with the state of its optimiser, is trained on disk."""


class ResumableRun:
    """A resumable training run, with its state in a folder of its own.

    Args:
        folder: folder of the state.
        inputs: digest of the inputs of the run.
        phase: name of the run in curve, progress and figures.

    Raises:
        Busy: another process works on this state.
    """

    def __init__(self, folder: Path, inputs: str, phase: str) -> None:
        self.folder, self.inputs, self.phase = folder, inputs, phase
        self.checkpoint, self._trace = folder / "checkpoint.safetensors", folder / "trace.json"
        self._levels: list[Level] = []
        Files().make_folder(folder)
        self._lock = WriterLock(folder / "lock", "training")
        Files().sweep(folder)
        torch.set_num_threads(1)

    def __enter__(self) -> "ResumableRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for level in self._levels:
            if isinstance(level, DiskLevel):
                level.close()
        self._lock.release()

    def levels(self, start: BankStream) -> list[Level]:
        """Return the levels of a bank to train, in the state of the checkpoint or of `start`.

        A level is in memory, or on disk if it takes more than `ON_DISK` bytes. A level in memory holds the blocks of
        `start`; `drive` then loads the checkpoint.

        Args:
            start: the blocks that the training starts from.

        Raises:
            VerificationFailed: the file of a level on disk is missing or has another size.
            VersionMismatch: the checkpoint belongs to other inputs.
        """
        self._levels = [self._level(number, start) for number in range(1, start.spec.levels + 1)]
        return self._levels

    def trained(self, start: BankStream) -> BankStream:
        """Return the trained blocks as a stream.

        Args:
            start: the stream that was given to `levels`.
        """

        def pieces(level: int) -> Iterator[Tensor]:
            for first, last in start.spans(level):
                yield self._levels[level - 1].read(torch.arange(first, last))

        return replace(start, pieces=pieces)

    def _level(self, number: int, start: BankStream) -> Level:
        count, size = start.blocks(number), start.spec.block_size(number)
        if 4 * count * (3 * size + 1) <= ON_DISK:
            return LazyAdamW(torch.cat(list(start.pieces(number))))
        path = self.folder / f"level-{number}.state"
        if not self.checkpoint.exists():
            return DiskLevel.create(path, start.pieces(number), count, size)
        if not path.exists():
            raise VerificationFailed(f"{path.name} is missing in {self.folder}; remove the folder to start again.")
        return DiskLevel(path, count, size, step_of(self.checkpoint, self.inputs))

    def drive(self, trainer: Trainer, heldout: Rows, watch: Watch) -> TrainingTrace:
        """Take the remaining steps, with measurements and checkpoints.

        The model is in evaluation mode: without dropout a step is a function of its inputs.

        Args:
            trainer: the run; the checkpoint sets its state.
            heldout: rows to measure the held-out loss on; may be empty.
            watch: callbacks for progress and figures.

        Returns:
            The curve and the seconds of the whole run, earlier processes included.

        Raises:
            QualityGateFailed: a loss is not finite.
            VersionMismatch: the checkpoint belongs to other inputs.
            VerificationFailed: the checkpoint is damaged.
        """
        steps, trace = trainer.settings.steps, self._resume(trainer)
        interval = min(MOST_STEPS, max(1, steps // STOPS))
        trainer.model.eval()
        if not trace.curve:
            self._measure(trainer, heldout, trace, watch)
        losses, started_at = list[float](), time.monotonic()
        while trainer.done < steps:
            losses.append(self._check_finite(trainer.step().item(), trainer.done))
            watch.progress(self.phase, trainer.done, steps, f"loss {losses[-1]:.3f}")
            watch.scalar(f"{self.phase}/train", trainer.done, losses[-1])
            if trainer.done % interval == 0 or trainer.done == steps:
                trace.seconds += time.monotonic() - started_at
                trace.curve.append(self._curve_point(trainer.done, sum(losses) / len(losses), "train"))
                self._measure(trainer, heldout, trace, watch)
                self._save(trainer, trace)
                losses, started_at = list[float](), time.monotonic()
        return trace

    def remove_state(self) -> None:
        """Remove the state of a finished run. Call it when the result is durable."""
        for path in [self.checkpoint, self._trace, *self.folder.glob("level-*")]:
            Files().unlink(path)

    def _check_finite(self, loss: float, step: int) -> float:
        if not math.isfinite(loss):
            raise QualityGateFailed(
                f"The loss is not finite any more at step {step} of {self.phase}. Train in another folder, with a "
                "lower learning rate."
            )
        return loss

    def _resume(self, trainer: Trainer) -> TrainingTrace:
        if not self.checkpoint.exists():
            return TrainingTrace()
        load_checkpoint(self.checkpoint, trainer, self.inputs)
        return TrainingTrace(**read_json(self._trace)).keep_until(trainer.done)

    def _save(self, trainer: Trainer, trace: TrainingTrace) -> None:
        # The trace goes first: points after the checkpoint are dropped when the run resumes.
        write_json(self._trace, asdict(trace))
        save_checkpoint(self.checkpoint, trainer, self.inputs)

    def _measure(self, trainer: Trainer, heldout: Rows, trace: TrainingTrace, watch: Watch) -> None:
        if len(heldout):
            loss = self._check_finite(heldout_loss(trainer, heldout), trainer.done)
            watch.scalar(f"{self.phase}/heldout", trainer.done, loss)
            trace.curve.append(self._curve_point(trainer.done, loss, "heldout"))

    def _curve_point(self, step: int, loss: float, split: str) -> dict[str, Any]:
        return {"phase": self.phase, "step": step, "loss": loss, "split": split}
