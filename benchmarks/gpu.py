"""Training on a GPU with memory against training without: `python -m benchmarks.gpu --json`.

Preset `160m` under bf16 autocast, the paper's fetch of 18.06M values, another path for every sequence of a batch. Arms:
the anchor alone, memory with its bank on the GPU, and memory as `fedmem.training.loop` trains it, its bank in CPU
memory. The bank is random and has fewer leaves than the paper's; a step reads and writes as many blocks as with all.

Share of the peak: 6 FLOPs for each parameter and fetched value, and token, by what the GPU could do in that time.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import harness
from fedmem.anchor.presets import new_anchor
from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.training.bank_state import BankState
from fedmem.training.lazy_adamw import LazyAdamW
from fedmem.training.loop import BankTrainer, Fetched, Trainer, in_memory
from fedmem.training.packing import Packed
from fedmem.training.settings import Settings, TrainedParts

PEAKS = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 FLOPs a second by what the device's name holds, as its maker states them; others are measured."""


class ResidentLevel(LazyAdamW):
    """A level on a GPU: its step counts lie there too, as the fused optimiser asks."""

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return first and second moments `[N, X]`, and steps `[N]`, float32."""
        return torch.zeros_like(self.blocks), torch.zeros_like(self.blocks), self.blocks.new_zeros(len(self.blocks))


class Resident(BankTrainer):
    """A bank that lies on the anchor's device with its moments: a step moves no block over the bus."""

    def leaf(self, paths_BP: Tensor, generic_B: Tensor, device: torch.device) -> Fetched:
        """Do the same as `BankTrainer.leaf`, but send only numbers to the device."""
        levels_BX = [level.read(paths_BP[:, n].to(device)) for n, level in enumerate(self.levels)]
        fetched_BX = self.spec.join(levels_BX)
        fetched_BX[generic_B.to(device)] = self.generic.read(torch.zeros(1, dtype=torch.int64, device=device))
        return Fetched(fetched_BX.requires_grad_(), paths_BP, generic_B)

    def move(self, fetched: Fetched, scale: float) -> None:
        """Do the same as `BankTrainer.move`, if everything is trained."""
        assert fetched.leaf_BX.grad is not None
        grad_BX, generic_B = fetched.leaf_BX.grad, fetched.generic_B
        chosen_B = generic_B.to(grad_BX.device)
        if generic_B.any():
            ids_1 = torch.zeros(1, dtype=torch.int64)
            self.generic.step(ids_1, grad_BX[chosen_B].sum(0, keepdim=True), self.adamw, scale)
        levels_BX = self.spec.split(grad_BX[~chosen_B])
        for level, level_BX, ids_B in zip(self.levels, levels_BX, fetched.paths_BP[~generic_B].T, strict=True):
            ids_U, owner_B = torch.unique(ids_B, return_inverse=True)
            sums_UX = level_BX.new_zeros(len(ids_U), level_BX.shape[1])
            level.step(ids_U, sums_UX.index_add_(0, owner_B.to(sums_UX.device), level_BX), self.adamw, scale)


@dataclass(frozen=True)
class Scale:
    """Anchor, fetch, and what a step reads."""

    preset: str
    vocabulary: int
    widths: tuple[int, ...]
    branching: int
    batch: int
    length: int


PAPER = Scale("160m", 50304, (256, 64, 16), branching=4, batch=16, length=1024)


class Arms:
    """The steps of each arm, all from the same weights, blocks, rows and paths."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        rng, self.device, self.scale = np.random.default_rng(0), device, scale
        tokens_MT = torch.from_numpy(rng.integers(2, scale.vocabulary, (scale.batch, scale.length)))
        positions_MT = torch.arange(scale.length).expand_as(tokens_MT)
        self.packed = Packed(tokens_MT, positions_MT, np.arange(scale.batch))
        leaves = rng.choice(scale.branching ** len(scale.widths), scale.batch, replace=False)
        steps = range(len(scale.widths) - 1, -1, -1)
        self.paths_MP = np.stack([leaves // scale.branching**n for n in steps], axis=1)
        self.settings = Settings(10**6, scale.batch, lr=1e-4, memory_lr=1e-4, bf16=True)
        self.spec = spec_for(self._model(torch.device("meta")), "ffn", scale.branching, scale.widths)
        self.parameters = self._model(torch.device("meta")).num_parameters()

    def _model(self, device: torch.device) -> PreTrainedModel:
        return new_anchor(self.scale.preset, self.scale.vocabulary, 0).to(device)

    def plain(self) -> Trainer:
        """Return the trainer of the anchor alone."""
        return Trainer(self._model(self.device), self.packed, self.settings, seed=0)

    def memory(self, *, on_device: bool) -> Trainer:
        """Return the trainer with a bank, on the device or in CPU memory."""
        model, state = self._model(self.device), BankState.new(self.spec, 0)
        every = TrainedParts(levels=frozenset(range(1, self.spec.levels + 1)))
        bank = in_memory(attach(model), state, self.paths_MP, self.settings, every)
        if on_device:
            levels = [ResidentLevel(blocks_NX.to(self.device)) for blocks_NX in state.levels]
            generic = ResidentLevel(state.generic[None].to(self.device))
            bank = Resident(bank.memory, self.spec, levels, generic, self.paths_MP, self.settings, every)
        return Trainer(model, self.packed, self.settings, seed=0, bank=bank)


def cuda() -> torch.device:
    """Return the GPU. Raise UsageError if there is none."""
    if not torch.cuda.is_available():
        raise UsageError(
            "There is no CUDA device here, or torch was built without CUDA. Run this on a machine with an NVIDIA GPU, "
            "with a CUDA build of torch."
        )
    return torch.device("cuda")


def stated_peak(name: str) -> float | None:
    """Return peak FLOPs a second of a device by its name; None for one that is not in the table."""
    return next((peak for key, peak in PEAKS.items() if key in name.replace("-", " ").split()), None)


def measured_peak(device: torch.device, size: int = 8192) -> float:
    """Return FLOPs a second of the best of ten large bf16 matrix products."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = [_seconds(lambda: a @ a, device) for _ in range(13)][3:]
    return 2 * size**3 / min(seconds)


def share(values: int, tokens_per_second: float, peak: float) -> float:
    """Return the share of the peak: 6 FLOPs for each value and token."""
    return 6 * values * tokens_per_second / peak


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measured(arms: Arms, turns: int) -> dict[str, Any]:
    """Return the figures of one scale on its GPU."""
    trainers = {
        "plain": arms.plain(),
        "memory": arms.memory(on_device=True),
        "memory_bank_on_cpu": arms.memory(on_device=False),
    }

    def finished(trainer: Trainer) -> Callable[[], object]:
        return lambda: (trainer.step(), torch.cuda.synchronize(arms.device))

    seconds = harness.turns({name: finished(trainer) for name, trainer in trainers.items()}, turns)
    name = torch.cuda.get_device_name(arms.device)
    return figures(arms, seconds, stated_peak(name) or measured_peak(arms.device)) | {
        "device": name,
        "peak_is": "stated" if stated_peak(name) else "measured",
        "peak_memory_bytes": torch.cuda.max_memory_allocated(arms.device),
    }


def figures(arms: Arms, seconds: dict[str, np.ndarray], peak: float) -> dict[str, Any]:
    """Return tokens a second, shares of the peak, and ratios of speed to the anchor alone; above 1 is faster."""
    tokens = arms.scale.batch * arms.scale.length
    speed = {name: tokens / float(np.median(values)) for name, values in seconds.items()}
    values = {name: arms.parameters + (0 if name == "plain" else arms.spec.fetch_size) for name in seconds}
    ratios = {f"{name}_over_plain": harness.ratio(seconds["plain"], seconds[name]) for name in [*seconds][1:]}
    return {
        "ratio": {name: found for name, (found, _) in ratios.items()},
        "interval": {f"ratio.{name}": bounds for name, (_, bounds) in ratios.items()},
        "tokens_per_second": speed,
        "share_of_peak": {name: share(values[name], speed[name], peak) for name in seconds},
        "peak_flops": peak,
        "parameters": arms.parameters,
        "fetched_values": arms.spec.fetch_size,
        "leaves": arms.spec.blocks(arms.spec.levels),
        "scale": asdict(arms.scale),
    }


def main() -> None:
    """Time the steps in turns. Exit with 2 if there is no GPU."""
    parser = harness.options(__doc__ or "")
    arguments = parser.parse_args()
    try:
        arms = Arms(PAPER, cuda())
    except UsageError as error:
        parser.error(str(error))
    data = measured(arms, 8 if arguments.quick else 40) | {"machine": harness.machine()}
    harness.emit("gpu", data, arguments)


if __name__ == "__main__":
    main()
