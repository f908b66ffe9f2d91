"""Turn documents into token sequences, and compute the loss of each token.

A sequence holds text of one document only; `fedmem.training.packing` puts several into one row.

Invariants
- A document starts and ends with the tokenizer's own tokens for this. A long document is cut into several sequences.
- Text is text: no other control token occurs, whatever a document spells.
- Sequences are padded on the right. The loss excludes padding positions, and causal attention never reads them.
- Batches are a pure function of their seed.

Shapes: N sequences, T tokens (public length), B batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from fedmem.anchor.tokenizer import PAD, end_of_document, start_of_document, text_ids


@dataclass(frozen=True)
class Sequences:
    """Token sequences `tokens_NT` (int64, padded with `PAD`), and `document_N`, the document number of each."""

    tokens_NT: Tensor
    document_N: np.ndarray

    def __len__(self) -> int:
        return len(self.document_N)

    def tokens(self) -> int:
        """Return the number of predicted tokens."""
        return int((self.tokens_NT[:, 1:] != PAD).sum())


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Sequences:
    """Tokenise texts into sequences.

    Args:
        tokenizer: the anchor's tokenizer.
        texts: documents.
        length: tokens of a sequence, at least 2; longer documents give several sequences.

    Returns:
        The sequences in the order of the texts, padded to `length`.
    """
    rows, documents, start, end = [], [], start_of_document(tokenizer), end_of_document(tokenizer)
    for number, text in enumerate(text_ids(tokenizer, texts)):
        ids = [start, *text, end]
        # Consecutive sequences share one token, so that every token but the first is predicted once.
        for first in range(0, len(ids) - 1, length - 1):
            rows.append(ids[first : first + length])
            documents.append(number)
    tokens_NT = torch.full((len(rows), length), PAD)
    for row_T, ids in zip(tokens_NT, rows, strict=True):
        row_T[: len(ids)] = torch.tensor(ids)
    return Sequences(tokens_NT, np.array(documents, dtype=np.int64))


class Batches:
    """Endless batches of numbers from 0 to `count` - 1: shuffled epochs, one after the other.

    Any batch can be computed from its step number, so a resumed run needs only this number.

    Args:
        count: number of rows or sequences.
        batch: numbers in a batch.
        seed: fixes the order.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._epochs: dict[int, np.ndarray] = {}

    def at(self, step: int) -> np.ndarray:
        """Return the numbers of a batch.

        Args:
            step: counted from 0.

        Returns:
            `[batch]` int64.

        Raises:
            ValueError: `count` is 0.
        """
        if self.count < 1:
            raise ValueError("there is no sequence to make batches of")
        start = step * self.batch
        first, last = start // self.count, (start + self.batch - 1) // self.count
        self._epochs = {epoch: self._epoch(epoch) for epoch in range(first, last + 1)}
        numbers = np.concatenate(list(self._epochs.values()))
        return numbers[start - first * self.count :][: self.batch]

    def _epoch(self, epoch: int) -> np.ndarray:
        cached = self._epochs.get(epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(self.count) if cached is None else cached


def trim(tokens_BT: Tensor) -> Tensor:
    """Drop columns that are padding in every row. The length becomes a multiple of 16, or stays the full length.

    Args:
        tokens_BT: tokens, padded on the right with `PAD`; at least one row.
    """
    longest = max(1, int((tokens_BT != PAD).sum(1).max()))
    return tokens_BT[:, : min(tokens_BT.shape[1], -(-longest // 16) * 16)]


def readable(tokens_BT: Tensor) -> Tensor:
    """Return the tokens with padding replaced by token 0, as input of a model.

    Args:
        tokens_BT: tokens, padded with `PAD`.
    """
    return tokens_BT.clamp(min=0)


def token_losses(logits_BTV: Tensor, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of each next token in nats, and the mask of predicted tokens.

    Padding is not predicted. With positions, the first token of a document (position 0) is not predicted either.

    Args:
        logits_BTV: output of the model.
        tokens_BT: its input, with padding.
        positions_BT: positions of packed rows; None for one sequence in a row.

    Returns:
        Losses `[B, T - 1]`, 0 where no token is predicted, and the mask `[B, T - 1]`, True where one is.
    """
    # Flat, with a padded last target: a softmax over a strided or copied vocabulary takes five times as long.
    target_BT = F.pad(tokens_BT[:, 1:], (0, 1), value=PAD)
    if positions_BT is not None:
        target_BT = target_BT.masked_fill(F.pad(positions_BT[:, 1:], (0, 1)) == 0, PAD)
    loss_N = F.cross_entropy(logits_BTV.float().flatten(0, 1), target_BT.flatten(), ignore_index=PAD, reduction="none")
    return loss_N.view(target_BT.shape)[:, :-1], target_BT[:, :-1] != PAD
