"""Targets after a context: what the model makes of an answer after its question, or of a text after a retrieved one.

Invariants
- Context is read and never scored: only a target's own tokens have a loss.
- Sequences are padded on the right, and a result is that of each sequence alone, up to float rounding.
- Measuring changes no parameter.

    targets = join([[1, 5, 6]], [[7, 8]])  # <eos> and two tokens of context, a target of two
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
from fedmem.eval.perplexity import SourcesOf, in_use
from fedmem.memory.attach import Memory
from fedmem.training.sequences import readable, token_losses, trim


@dataclass(frozen=True)
class Targets:
    """`tokens_NT` (context and target, padded with `PAD`) and the position where each target starts, at least 1."""

    tokens_NT: Tensor
    start_N: Tensor

    def __len__(self) -> int:
        return len(self.start_N)


def join(contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> Targets:
    """One sequence for each context and its target. Raises ValueError where one of them is empty."""
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
    """Summed loss in nats and number of tokens of each target, `[N]` float64 and int64."""
    losses_N, counts_N = np.zeros(len(targets)), np.zeros(len(targets), dtype=np.int64)
    for numbers_B, logits_BTV, tokens_BT, own_BT in _batches(model, targets, memory, sources, batch):
        loss_BT, _ = token_losses(logits_BTV, tokens_BT)
        losses_N[numbers_B] = (loss_BT.double() * own_BT).sum(1).numpy()
        counts_N[numbers_B] = own_BT.sum(1).numpy()
    return losses_N, counts_N


def greedy_matches(
    model: PreTrainedModel,
    targets: Targets,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> np.ndarray:
    """Whether greedy decoding of as many tokens gives the target, `[N]` bool.

    It does where each token of the target is the most likely one after those before it: one pass, no generation.
    """
    matches_N = np.zeros(len(targets), dtype=bool)
    for numbers_B, logits_BTV, tokens_BT, own_BT in _batches(model, targets, memory, sources, batch):
        missed_BT = logits_BTV[:, :-1].argmax(-1) != tokens_BT[:, 1:]
        matches_N[numbers_B] = ~(missed_BT & own_BT).any(1).numpy()
    return matches_N


@torch.no_grad()
def _batches(
    model: PreTrainedModel, targets: Targets, memory: Memory | None, sources: SourcesOf | None, batch: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor, Tensor]]:
    """Numbers, logits `[B, T, V]`, tokens `[B, T]`, and which of the T - 1 predicted ones belong to the target."""
    model.eval()
    for start in range(0, len(targets), batch):
        numbers_B = np.arange(start, min(start + batch, len(targets)))
        tokens_BT = trim(targets.tokens_NT[numbers_B])
        with in_use(memory, sources, numbers_B):
            logits_BTV = model(readable(tokens_BT)).logits
        positions_T = torch.arange(1, tokens_BT.shape[1])
        yield (
            numbers_B,
            logits_BTV,
            tokens_BT,
            (positions_T >= targets.start_N[numbers_B, None]) & (tokens_BT[:, 1:] != PAD),
        )
