"""Held-out loss of an anchor with and without memory.

Invariants
- A loss is the sum over tokens divided by their number, so batches and padding leave it as it is.
- Measuring changes no parameter.
- Sequences are taken in their order in fixed batches: equal inputs give equal losses, to the last bit.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.memory.attach import Memory
from fedmem.memory.kinds import ActiveMemory
from fedmem.training.sequences import readable, token_losses, trim

SourcesOf = Callable[[np.ndarray], Sequence[ActiveMemory]]
"""Sources in use for a batch, by its sequence numbers."""


def in_use(memory: Memory | None, sources: SourcesOf | None, numbers_B: np.ndarray) -> AbstractContextManager[None]:
    """Put the memory of a batch in use: the bare anchor without sources, nothing without a memory."""
    if memory is None:
        return nullcontext()
    return memory.using(*(sources(numbers_B) if sources else ()))


@torch.no_grad()
def sequence_losses(
    model: PreTrainedModel,
    tokens_NT: Tensor,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss in nats and number of predicted tokens of each sequence, `[N]` float64 and int64."""
    model.eval()
    losses, counts = [], []
    for start in range(0, len(tokens_NT), batch):
        numbers_B = np.arange(start, min(start + batch, len(tokens_NT)))
        tokens_BT = trim(tokens_NT[numbers_B])
        with in_use(memory, sources, numbers_B):
            loss_BT, mask_BT = token_losses(model(readable(tokens_BT)).logits, tokens_BT)
        losses.append(loss_BT.double().sum(1).numpy())
        counts.append(mask_BT.sum(1).numpy())
    return np.concatenate(losses or [np.zeros(0)]), np.concatenate(counts or [np.zeros(0, dtype=np.int64)])


def mean(losses_and_counts: tuple[np.ndarray, np.ndarray]) -> float:
    """Loss per token in nats of the pair that `sequence_losses` returns."""
    losses_N, counts_N = losses_and_counts
    return float(losses_N.sum() / counts_N.sum())
