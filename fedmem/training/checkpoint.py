"""Checkpoints of a training run: one safetensors file from which a run goes on to the same bytes.

It holds the anchor with its AdamW state, and of the bank what lies in memory; levels on disk keep their own files,
tied to the checkpoint by its step (`fedmem.training.working_set`).

Invariants
- A run that was resumed ends with the bytes of one that was not.
- A file is written beside the old one and renamed: there is always a whole checkpoint.
- A damaged file, or one of other inputs, is refused, never half loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedmem.errors import VerificationFailed, VersionMismatch
from fedmem.storage.files import Files
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import Trainer
from fedmem.training.working_set import DiskLevel

_ADAM = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(path: Path, trainer: Trainer, inputs: str) -> None:
    """Make the run's state durable; `inputs` is the digest of what the run is a function of.

    Raises StorageError where the disk is full; the last checkpoint is whole then.
    """
    disk = [level for level in _levels(trainer).values() if isinstance(level, DiskLevel)]
    for level in disk:
        level.flush()
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(trainer).items()}
    about = {"step": str(trainer.done), "inputs": inputs, "sha256": _digest(tensors)}
    Files().replace(path, save(tensors, metadata=about))
    for level in disk:
        level.committed(trainer.done)


def step_of(path: Path, inputs: str) -> int:
    """The step of a checkpoint.

    Raises VersionMismatch for one of other inputs, VerificationFailed for a damaged one.
    """
    about, _ = _read(path, inputs)
    return int(about["step"])


def load_checkpoint(path: Path, trainer: Trainer, inputs: str) -> None:
    """Set the trainer to the state of a checkpoint. Raises as `step_of`."""
    about, tensors = _read(path, inputs)
    if trainer.optimizer:
        _start_adam(trainer.optimizer)
    own = _tensors(trainer)
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise VersionMismatch(f"{path.name} belongs to another model or bank; start the training in another folder.")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    trainer.done = int(about["step"])


def _read(path: Path, inputs: str) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    damaged = f"{path.name} is damaged; remove it to start the training again."
    try:
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise VerificationFailed(damaged) from error
    if about.get("sha256") != _digest(tensors):
        raise VerificationFailed(damaged)
    if about.get("inputs") != inputs:
        raise VersionMismatch(f"{path.name} is of a run with other inputs; train in another folder, or remove it.")
    return about, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps({name: list(t.shape) for name, t in sorted(tensors.items())}).encode())
    for _, tensor in sorted(tensors.items()):
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _levels(trainer: Trainer) -> dict[str, object]:
    bank = trainer.bank
    return {"generic": bank.generic, **{f"level-{n}": x for n, x in enumerate(bank.levels, 1)}} if bank else {}


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the run's state that lies in memory, by name; views, so that they can be set."""
    found: dict[str, Tensor] = {}
    if trainer.optimizer:
        for name, parameter in trainer.model.named_parameters():
            found[f"anchor.{name}"] = parameter.data
            state = trainer.optimizer.state[parameter]
            found |= {f"adam.{name}.{key}": state[key] for key in _ADAM if key in state}
    for name, level in _levels(trainer).items():
        if isinstance(level, LazyAdamW):
            parts = zip(("blocks", "first", "second", "steps"), (level.blocks, *level.moments), strict=True)
            found |= {f"{name}.{part}": tensor for part, tensor in parts}
    return found


def _start_adam(optimizer: torch.optim.Optimizer) -> None:
    """Zero state, as the first step makes it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                zeros = {key: torch.zeros_like(parameter) for key in _ADAM[:2]}
                optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
