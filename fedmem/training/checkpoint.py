"""Save and load checkpoints of a training run. A checkpoint is one safetensors file.

It holds the anchor with its AdamW state, and the levels of the bank that are in memory. Levels on disk have files of
their own, which refer to the checkpoint by its step (`fedmem.training.working_set`).

Invariants
- A resumed run ends with the same bytes as a run without a break.
- A new file is written beside the old one and renamed, so a complete checkpoint always exists.
- A damaged file, or a file of other inputs, is refused before anything of it is used.
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
    """Make the state of a run durable.

    Args:
        path: the file of the checkpoint.
        trainer: the run.
        inputs: digest of the inputs of the run.

    Raises:
        StorageError: the disk is full; the last checkpoint is still complete.
    """
    disk_levels = [level for level in _levels(trainer).values() if isinstance(level, DiskLevel)]
    for level in disk_levels:
        level.flush()
    tensors = {name: tensor.contiguous() for name, tensor in _state_tensors(trainer).items()}
    header = {"step": str(trainer.done), "inputs": inputs, "sha256": _digest(tensors)}
    Files().replace(path, save(tensors, metadata=header))
    for level in disk_levels:
        level.commit(trainer.done)


def step_of(path: Path, inputs: str) -> int:
    """Return the step of a checkpoint.

    Args:
        path: the file of the checkpoint.
        inputs: digest of the inputs of the run.

    Returns:
        The number of steps that the run had taken.

    Raises:
        VersionMismatch: the checkpoint belongs to other inputs.
        VerificationFailed: the checkpoint is damaged.
    """
    header, _ = _read(path, inputs)
    return int(header["step"])


def load_checkpoint(path: Path, trainer: Trainer, inputs: str) -> None:
    """Set the trainer to the state of a checkpoint.

    Args:
        path: the file of the checkpoint.
        trainer: a run with the model and bank of the checkpoint; it is changed in place.
        inputs: digest of the inputs of the run.

    Raises:
        VersionMismatch: the checkpoint belongs to other inputs, or to another model or bank.
        VerificationFailed: the checkpoint is damaged.
    """
    header, saved_tensors = _read(path, inputs)
    if trainer.optimizer:
        _start_adam(trainer.optimizer)
    tensors = _state_tensors(trainer)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in saved_tensors.items()}:
        raise VersionMismatch(f"{path.name} belongs to another model or bank; start the training in another folder.")
    for name, tensor in tensors.items():
        tensor.copy_(saved_tensors[name])
    trainer.done = int(header["step"])


def _read(path: Path, inputs: str) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    damaged = f"{path.name} is damaged; remove it to start the training again."
    try:
        with safe_open(path, "pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise VerificationFailed(damaged) from error
    if header.get("sha256") != _digest(tensors):
        raise VerificationFailed(damaged)
    if header.get("inputs") != inputs:
        raise VersionMismatch(f"{path.name} is of a run with other inputs; train in another folder, or remove it.")
    return header, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256(json.dumps({name: list(t.shape) for name, t in sorted(tensors.items())}).encode())
    for _, tensor in sorted(tensors.items()):
        sha256.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _levels(trainer: Trainer) -> dict[str, object]:
    bank = trainer.bank
    return {"generic": bank.generic, **{f"level-{n}": x for n, x in enumerate(bank.levels, 1)}} if bank else {}


def _state_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """Return all tensors of the run's state that are in memory, by name. They are views: setting them sets the run."""
    tensors: dict[str, Tensor] = {}
    if trainer.optimizer:
        for name, parameter in trainer.model.named_parameters():
            tensors[f"anchor.{name}"] = parameter.data
            state = trainer.optimizer.state[parameter]
            tensors |= {f"adam.{name}.{key}": state[key] for key in _ADAM if key in state}
    for name, level in _levels(trainer).items():
        if isinstance(level, LazyAdamW):
            parts = zip(("blocks", "first", "second", "steps"), (level.blocks, *level.moments), strict=True)
            tensors |= {f"{name}.{part}": tensor for part, tensor in parts}
    return tensors


def _start_adam(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser the zero state that its first step would make."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                zeros = {key: torch.zeros_like(parameter) for key in _ADAM[:2]}
                optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
