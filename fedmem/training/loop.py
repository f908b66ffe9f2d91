"""Pretraining of the anchor, and co-training of anchor and bank [HM, §4].

Invariants
- A run is a pure function of its inputs and seed: batches, generic draws and initial rows come from it.
- The control `anchor alone` sees the same batches with the same anchor settings as the co-trained one.
- The generic block stands in for the fetched one with probability 1 / (k + 1).

    state = BankState.new(spec, seed=7)
    cotrain(model, attach(model), state, sequences, paths_NP, Settings(steps=100, batch=16, lr=1e-3), seed=7)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.memory.attach import Memory
from fedmem.memory.ffn import RowsSource, new_rows
from fedmem.memory.spec import MemorySpec
from fedmem.training.lazy_adamw import AdamWSettings, LazyAdamW
from fedmem.training.sequences import Sequences, batches, mean_loss, trim

CLIP = 1.0
OnStep = Callable[[int, float], None]
"""Called after each step with its number, from 1, and its training loss in nats (public text only)."""


@dataclass(frozen=True)
class Settings:
    """A phase of training on public text: `lr` falls to `lr * final` along a cosine after a linear warm-up."""

    steps: int
    batch: int
    lr: float
    final: float = 0.1
    warmup: int = 10
    weight_decay: float = 0.05
    memory_lr: float = 0.0
    memory_weight_decay: float = 1e-3

    def scale(self, step: int) -> float:
        """Factor on the learning rates at `step`, counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps))))


@dataclass(frozen=True)
class Trained:
    """What a phase moves: the anchor, which levels (counted from 1), and the generic block."""

    anchor: bool = True
    levels: frozenset[int] = frozenset()
    generic: bool = True


@dataclass
class BankState:
    """The bank while it is trained: `levels[l]` is `[k ** (l + 1), layers, 3, r, d]`, float32."""

    levels: list[Tensor]
    generic: Tensor = field(repr=False)

    @classmethod
    def new(cls, spec: MemorySpec, seed: int) -> "BankState":
        """Fresh blocks: M3 = 0 everywhere."""
        generator = torch.Generator().manual_seed(seed)

        def level(count: int, width: int) -> Tensor:
            return torch.stack([new_rows(spec.layers, width, spec.d_model, generator) for _ in range(count)])

        levels = [level(spec.blocks(number), width) for number, width in enumerate(spec.widths, start=1)]
        return cls(levels, level(1, spec.width)[0])

    def fetch_many(self, paths_BP: np.ndarray) -> Tensor:
        """`rows_BL3RD` for a batch of paths, out of memory."""
        ids_BP = torch.from_numpy(np.asarray(paths_BP))
        return torch.cat([rows[ids_BP[:, number]] for number, rows in enumerate(self.levels)], dim=3)


def anchor_optimizer(model: PreTrainedModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW (0.9, 0.95); norms are not decayed."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)


def _anchor_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, lr: float) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def pretrain(
    model: PreTrainedModel, sequences: Sequences, settings: Settings, seed: int, on_step: OnStep | None = None
) -> None:
    """Train the anchor alone, in place."""
    optimizer = anchor_optimizer(model, settings)
    order = batches(len(sequences), settings.batch, seed)
    model.train()
    for step in range(settings.steps):
        tokens_BT = trim(sequences.tokens_NT[next(order)])
        loss = mean_loss(model(tokens_BT).logits, tokens_BT)
        loss.backward()
        _anchor_step(model, optimizer, settings.lr * settings.scale(step))
        if on_step:
            on_step(step + 1, loss.item())


@dataclass
class _Fetched:
    """The blocks of one batch as leaves of the graph: per level the distinct ids and their rows."""

    ids: list[Tensor]
    rows: list[Tensor]
    used: list[Tensor]
    batch_BL3RD: Tensor

    def gradients(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Per level the ids that some sequence really used, and their gradients."""
        for ids, rows, used in zip(self.ids, self.rows, self.used, strict=True):
            assert rows.grad is not None
            yield ids[used], rows.grad[used]


def _fetch_leaves(state: BankState, paths_BP: Tensor, generic_B: Tensor) -> _Fetched:
    generic = state.generic[None].clone().requires_grad_()
    ids, rows, used, parts = [torch.zeros(1, dtype=torch.int64)], [generic], [generic_B.any()[None]], []
    for number, level in enumerate(state.levels):
        unique_U, inverse_B = torch.unique(paths_BP[:, number], return_inverse=True)
        leaf = level[unique_U].requires_grad_()
        ids.append(unique_U)
        rows.append(leaf)
        used.append(torch.isin(torch.arange(len(unique_U)), inverse_B[~generic_B]))
        parts.append(leaf[inverse_B])
    chosen = torch.where(generic_B[:, None, None, None, None], generic, torch.cat(parts, dim=3))
    return _Fetched(ids, rows, used, chosen)


def _lazy_optimizers(state: BankState, settings: Settings, trained: Trained) -> list[LazyAdamW | None]:
    adamw = AdamWSettings(settings.memory_lr, settings.memory_weight_decay)
    moves = [trained.generic, *(number in trained.levels for number in range(1, len(state.levels) + 1))]
    rows = [state.generic[None], *state.levels]
    return [LazyAdamW(r, adamw) if move else None for r, move in zip(rows, moves, strict=True)]


def cotrain(
    model: PreTrainedModel,
    memory: Memory,
    state: BankState,
    sequences: Sequences,
    paths_NP: np.ndarray,
    settings: Settings,
    seed: int,
    on_step: OnStep | None = None,
    trained: Trained | None = None,
) -> None:
    """Train anchor and bank together, in place; `paths_NP` holds the path of each sequence's document.

    `trained` narrows what moves (default: everything); the rest is frozen.
    """
    trained = trained or Trained(levels=frozenset(range(1, len(state.levels) + 1)))
    model.requires_grad_(trained.anchor)
    optimizer = anchor_optimizer(model, settings) if trained.anchor else None
    lazy = _lazy_optimizers(state, settings, trained)
    order, draws = batches(len(sequences), settings.batch, seed), np.random.default_rng([seed, 1])
    paths, branching = torch.from_numpy(np.asarray(paths_NP)), len(state.levels[0])
    model.train()
    for step in range(settings.steps):
        chosen_B = next(order)
        tokens_BT = trim(sequences.tokens_NT[chosen_B])
        generic_B = torch.from_numpy((draws.random(len(chosen_B)) < 1 / (branching + 1)) & trained.generic)
        fetched = _fetch_leaves(state, paths[chosen_B], generic_B)
        with memory.using(RowsSource(fetched.batch_BL3RD)):
            loss = mean_loss(model(tokens_BT).logits, tokens_BT)
            loss.backward()
        scale = settings.scale(step)
        for level, (ids, grads) in zip(lazy, fetched.gradients(), strict=True):
            if level:
                level.step(ids, grads, scale)
        if optimizer:
            _anchor_step(model, optimizer, settings.lr * scale)
        if on_step:
            on_step(step + 1, loss.item())
