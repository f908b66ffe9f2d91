"""Score targets after a context: an answer after its question, or a text after a retrieved text.

Invariants
- The context is never scored: only the tokens of a target have a loss.
- Sequences are padded on the right. The result of each sequence is the same as alone, up to float rounding.
- Measuring changes no parameter.

    targets = join_targets([[1, 5, 6]], [[7, 8]])  # <eos> and two tokens of context, a target of two
    losses_N, counts_N = target_losses(model, targets, memory, sources)

Shapes: N sequences, B of a batch, T tokens, V entries of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.anchor.tokenizer import PAD
from fedmem.eval.buckets import Losses
from fedmem.eval.perplexity import SourcesOf, use_memory
from fedmem.memory.attach import Memory
from fedmem.training.sequences import readable, token_losses, trim


@dataclass(frozen=True)
class Targets:
    """Contexts with their targets.

    Attributes:
        tokens_NT: contexts and targets joined, int64, padded with `PAD`.
        start_N: first position of each target, from 1.
    """

    tokens_NT: Tensor
    start_N: Tensor

    def __len__(self) -> int:
        return len(self.start_N)


def join_targets(contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Targets:
    """Join each context with its target.

    Args:
        contexts: tokens of each context, at least one.
        targets: tokens of each target, at least one.

    Raises:
        ValueError: a context or a target is empty.
    """
    if not all(contexts) or not all(targets):
        raise ValueError("a context and a target have at least one token each")
    rows = [torch.tensor([*context, *target]) for context, target in zip(contexts, targets, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD) if rows else torch.zeros(0, 0)
    return Targets(padded.long(), torch.tensor([len(context) for context in contexts], dtype=torch.int64))


def target_losses(
    model: PreTrainedModel,
    targets: Targets,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> Losses:
    """Measure the loss of each target.

    Args:
        model: the anchor.
        targets: N targets after their contexts.
        memory: attached to `model`; None for a model without memory.
        sources: gives the sources of a batch; None for the bare anchor.
        batch: sequences in one forward pass.

    Returns:
        Summed loss in nats, `[N]` float64, and number of tokens, `[N]` int64.
    """
    losses_N, counts_N = np.zeros(len(targets)), np.zeros(len(targets), dtype=np.int64)
    for numbers_B, logits_BTV, tokens_BT, is_target_BT in _batches(model, targets, memory, sources, batch):
        loss_BT, _ = token_losses(logits_BTV, tokens_BT)
        losses_N[numbers_B] = (loss_BT.double() * is_target_BT).sum(1).numpy()
        counts_N[numbers_B] = is_target_BT.sum(1).numpy()
    return losses_N, counts_N


def greedy_matches(
    model: PreTrainedModel,
    targets: Targets,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> np.ndarray:
    """Return for each target True if greedy decoding of as many tokens gives it.

    That is so if each token of the target is the most likely one after the tokens before it. One forward pass shows
    this, without generation.

    Args:
        model: the anchor.
        targets: N targets after their contexts.
        memory: attached to `model`; None for a model without memory.
        sources: gives the sources of a batch; None for the bare anchor.
        batch: sequences in one forward pass.

    Returns:
        `[N]` bool.
    """
    matches_N = np.zeros(len(targets), dtype=bool)
    for numbers_B, logits_BTV, tokens_BT, is_target_BT in _batches(model, targets, memory, sources, batch):
        is_wrong_BT = logits_BTV[:, :-1].argmax(-1) != tokens_BT[:, 1:]
        matches_N[numbers_B] = ~(is_wrong_BT & is_target_BT).any(1).numpy()
    return matches_N


@torch.no_grad()
def _batches(
    model: PreTrainedModel, targets: Targets, memory: Memory | None, sources: SourcesOf | None, batch: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Tensor]]:
    """Yield for each batch its numbers, logits `[B, T, V]`, tokens `[B, T]`, and a mask of the target `[B, T - 1]`.

    The mask is over the T - 1 predicted tokens.
    """
    model.eval()
    for start in range(0, len(targets), batch):
        numbers_B = np.arange(start, min(start + batch, len(targets)))
        tokens_BT = trim(targets.tokens_NT[numbers_B])
        with use_memory(memory, sources, numbers_B):
            logits_BTV = model(readable(tokens_BT)).logits
        positions_T = torch.arange(1, tokens_BT.shape[1])
        yield (
            numbers_B,
            logits_BTV,
            tokens_BT,
            (positions_T >= targets.start_N[numbers_B, None]) & (tokens_BT[:, 1:] != PAD),
        )
