"""Train anchor and bank, step by step [docs/method.md, §4]; and the two loops `pretrain` and `cotrain`.

Invariants
- A run is a pure function of its inputs and seed. Step n draws from (seed, n) alone, so a run can resume at any step.
- The control `anchor alone` sees the same batches, with the same anchor settings, as the co-trained anchor.
- With probability 1 / (k + 1) a row uses the generic block instead of its fetched blocks.

    state = BankState.new(spec, seed=7)
    cotrain(model, attach(model), state, packed, paths_MP, Settings(steps=100, batch=16, lr=1e-3), seed=7)

Shapes: M packed rows, B rows of a batch, P levels, U distinct blocks, X values of a block or a fetch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.memory.attach import Memory
from fedmem.memory.block import make_source
from fedmem.memory.spec import MemorySpec
from fedmem.training.bank_state import BankState
from fedmem.training.lazy_adamw import AdamWSettings, LazyAdamW, Level
from fedmem.training.packing import Packed, packed_loss
from fedmem.training.sequences import Batches
from fedmem.training.settings import Settings, TrainedParts

CLIP = 1.0
"""The L2 norm to which the gradient of the anchor is clipped."""
OnStep = Callable[[int, float], None]
"""A callback after each step. It gets the number of the step, from 1, and its training loss in nats (public text)."""


def anchor_optimizer(model: PreTrainedModel, settings: Settings) -> torch.optim.AdamW:
    """Return AdamW with betas (0.9, 0.95) for the anchor; norm weights have no weight decay.

    Args:
        model: the anchor.
        settings: learning rate, weight decay and epsilon.
    """
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), eps=settings.eps, fused=True)


@dataclass
class Fetched:
    """The blocks of one batch.

    Attributes:
        leaf_BX: the fetched blocks as one leaf of the autograd graph.
        paths_BP: the path of each row.
        generic_B: True for a row that uses the generic block.
    """

    leaf_BX: Tensor
    paths_BP: Tensor
    generic_B: Tensor

    def gradients(self, spec: MemorySpec) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield distinct block ids `[U]` and their summed gradients `[U, X]`: the generic block, then each level.

        Args:
            spec: the shape of the bank.
        """
        assert self.leaf_BX.grad is not None
        grad_BX, routed_B = self.leaf_BX.grad.to("cpu"), ~self.generic_B
        generic_count = int(self.generic_B.any())
        yield (
            torch.zeros(generic_count, dtype=torch.int64),
            grad_BX[self.generic_B].sum(0, keepdim=True)[:generic_count],
        )
        for number, level_BX in enumerate(spec.split(grad_BX[routed_B])):
            ids_U, owner_B = torch.unique(self.paths_BP[routed_B, number], return_inverse=True)
            yield ids_U, torch.zeros(len(ids_U), level_BX.shape[1]).index_add_(0, owner_B, level_BX)


class BankTrainer:
    """The part of a training step that concerns the bank: fetch the blocks of a batch, and update them.

    Args:
        memory: the memory that is attached to the anchor.
        spec: shape of the bank.
        levels: the blocks of each level, in memory or on disk.
        generic: the generic block, as a level of one block.
        paths_MP: the path of each packed row.
        settings: settings of the phase.
        trained: the parts that are updated.
    """

    def __init__(
        self,
        memory: Memory,
        spec: MemorySpec,
        levels: Sequence[Level],
        generic: Level,
        paths_MP: np.ndarray,
        settings: Settings,
        trained: TrainedParts,
    ) -> None:
        self.memory, self.spec, self.trained = memory, spec, trained
        self.levels, self.generic = list(levels), generic
        self.paths = torch.from_numpy(np.asarray(paths_MP))
        self.adamw = AdamWSettings(settings.memory_lr, settings.memory_weight_decay, eps=settings.eps)

    def fetch(self, chosen_B: np.ndarray, rng: np.random.Generator, device: torch.device) -> Fetched:
        """Fetch the blocks of a batch as a leaf on the anchor's device; `rng` draws the rows with the generic block.

        Args:
            chosen_B: numbers of the packed rows.
            rng: generator of the step.
            device: the device of the anchor.
        """
        probability = 1 / (self.spec.branching + 1) if self.trained.generic else 0.0
        return self.leaf(self.paths[chosen_B], torch.from_numpy(rng.random(len(chosen_B)) < probability), device)

    def leaf(self, paths_BP: Tensor, generic_B: Tensor, device: torch.device) -> Fetched:
        """Fetch the blocks of a batch of paths, as a leaf of the autograd graph.

        Args:
            paths_BP: `[B, P]`, the path of each row.
            generic_B: True for a row that gets the generic block.
            device: the device of the anchor.
        """
        levels_BX = []
        for number, level in enumerate(self.levels):
            ids_U, owner_B = torch.unique(paths_BP[:, number], return_inverse=True)
            levels_BX.append(level.read(ids_U)[owner_B])
        fetched_BX = self.spec.join(levels_BX)
        if generic_B.any():
            fetched_BX[generic_B] = self.generic.read(torch.zeros(1, dtype=torch.int64))
        return Fetched(fetched_BX.to(device).requires_grad_(), paths_BP, generic_B)

    def move(self, fetched: Fetched, scale: float) -> None:
        """Apply the gradients of a batch to the parts that are trained.

        Args:
            fetched: the batch, after the backward pass.
            scale: factor on the learning rate, from the schedule.
        """
        are_trained = [self.trained.generic, *(n in self.trained.levels for n in range(1, len(self.levels) + 1))]
        levels = zip([self.generic, *self.levels], are_trained, fetched.gradients(self.spec), strict=True)
        for level, is_trained, (ids_U, grads_UX) in levels:
            if is_trained:
                level.step(ids_U, grads_UX, self.adamw, scale)


def in_memory(
    memory: Memory, state: BankState, paths_MP: np.ndarray, settings: Settings, trained: TrainedParts
) -> BankTrainer:
    """Return a `BankTrainer` for a bank in memory.

    Args:
        memory: the memory that is attached to the anchor.
        state: the bank; it is changed in place.
        paths_MP: `[M, P]`, the path of each packed row.
        settings: settings of the phase.
        trained: the parts that are updated.
    """
    levels = [LazyAdamW(blocks_NX) for blocks_NX in state.levels]
    return BankTrainer(memory, state.spec, levels, LazyAdamW(state.generic[None]), paths_MP, settings, trained)


class Trainer:
    """A training run of anchor and bank.

    Args:
        model: the anchor; it is changed in place.
        packed: rows to train on.
        settings: settings of the run.
        seed: seed of batches and draws.
        bank: the bank to train; None trains the anchor alone.
        anchor: if False, the anchor is frozen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        packed: Packed,
        settings: Settings,
        seed: int,
        bank: BankTrainer | None = None,
        *,
        anchor: bool = True,
    ) -> None:
        self.model, self.packed, self.settings, self.seed, self.bank = model, packed, settings, seed, bank
        model.requires_grad_(anchor)
        self.optimizer = anchor_optimizer(model, settings) if anchor else None
        self.batches = Batches(len(packed), settings.batch, seed)
        self.done = 0

    def step(self) -> Tensor:
        """Take one step. Return its mean loss in nats per predicted token, a scalar."""
        chosen_B, scale = self.batches.at(self.done), self.settings.scale(self.done)
        rng = np.random.default_rng([self.seed, 1, self.done])
        if self.bank:
            fetched = self.bank.fetch(chosen_B, rng, self.model.device)
            with self.bank.memory.using(make_source(self.bank.spec, fetched.leaf_BX)):
                loss = self._backward(chosen_B)
            self.bank.move(fetched, scale)
        else:
            loss = self._backward(chosen_B)
        self._move_anchor(scale)
        self.done += 1
        return loss

    def _backward(self, chosen_B: np.ndarray) -> Tensor:
        device = self.model.device
        tokens_BT, positions_BT = (tensor.to(device) for tensor in self.packed.batch(chosen_B))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
            loss = packed_loss(self.model, tokens_BT, positions_BT)
        loss.backward()
        return loss.detach()

    def _move_anchor(self, scale: float) -> None:
        if self.optimizer is None:
            return
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * scale
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, on_step: OnStep | None = None) -> None:
        """Take the remaining steps in training mode.

        Args:
            on_step: called after each step.
        """
        self.model.train()
        while self.done < self.settings.steps:
            loss = self.step()
            if on_step:
                on_step(self.done, loss.item())


def pretrain(
    model: PreTrainedModel, packed: Packed, settings: Settings, seed: int, on_step: OnStep | None = None
) -> None:
    """Train the anchor alone, in place.

    Args:
        model: the anchor.
        packed: rows to train on.
        settings: settings of the run.
        seed: seed of the batches.
        on_step: called after each step.
    """
    Trainer(model, packed, settings, seed).run(on_step)


def cotrain(
    model: PreTrainedModel,
    memory: Memory,
    state: BankState,
    packed: Packed,
    paths_MP: np.ndarray,
    settings: Settings,
    seed: int,
    on_step: OnStep | None = None,
    trained: TrainedParts | None = None,
) -> None:
    """Train anchor and bank together, in place.

    Args:
        model: the anchor.
        memory: the memory that is attached to it.
        state: the bank.
        packed: rows to train on.
        paths_MP: the path of each packed row.
        settings: settings of the run.
        seed: seed of batches and draws.
        on_step: called after each step.
        trained: the parts that are trained, by default all; the rest is frozen.
    """
    trained = trained or TrainedParts(levels=frozenset(range(1, len(state.levels) + 1)))
    bank = in_memory(memory, state, paths_MP, settings, trained)
    Trainer(model, packed, settings, seed, bank, anchor=trained.anchor).run(on_step)
