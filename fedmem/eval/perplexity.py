"""Measure the held-out loss of an anchor with and without memory.

Invariants
- A loss is the sum over tokens divided by their number, so batches and padding do not change it.
- Measuring changes no parameter.
- Sequences are read in their order in fixed batches, so equal inputs give equal losses, to the last bit.
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
"""A function that returns the sources for a batch; its argument is the sequence numbers, `[B]`."""


def use_memory(memory: Memory | None, sources: SourcesOf | None, numbers_B: np.ndarray) -> AbstractContextManager[None]:
    """Return a context in which the memory of a batch is in use.

    Args:
        memory: attached to the model; None for a context that does nothing.
        sources: gives the sources of the batch; None for the bare anchor.
        numbers_B: sequence numbers of the batch.
    """
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
    """Measure the loss of each sequence.

    Args:
        model: the anchor.
        tokens_NT: the sequences, padded with PAD.
        memory: attached to `model`; None for a model without memory.
        sources: gives the sources of a batch; None for the bare anchor.
        batch: sequences in one forward pass.

    Returns:
        Summed loss in nats, `[N]` float64, and number of predicted tokens, `[N]` int64.
    """
    model.eval()
    losses, counts = [], []
    for start in range(0, len(tokens_NT), batch):
        numbers_B = np.arange(start, min(start + batch, len(tokens_NT)))
        tokens_BT = trim(tokens_NT[numbers_B])
        with use_memory(memory, sources, numbers_B):
            loss_BT, mask_BT = token_losses(model(readable(tokens_BT)).logits, tokens_BT)
        losses.append(loss_BT.double().sum(1).numpy())
        counts.append(mask_BT.sum(1).numpy())
    return np.concatenate(losses or [np.zeros(0)]), np.concatenate(counts or [np.zeros(0, dtype=np.int64)])


def mean_loss(losses_and_counts: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the loss in nats a token, from the pair that `sequence_losses` returns.

    Args:
        losses_and_counts: summed loss in nats and number of tokens of each sequence, `[N]` each; at least one token in
            all.
    """
    losses_N, counts_N = losses_and_counts
    return float(losses_N.sum() / counts_N.sum())
