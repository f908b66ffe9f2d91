"""Documents as sequences: one document per sequence, never two; `fedmem.training.packing` joins them for training.

Invariants
- A document opens and closes with the tokenizer's end of document; a long one is cut into several sequences.
- Sequences are padded on the right; the loss never sees a padding position, and causal attention never looks at one.
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

from fedmem.anchor.tokenizer import PAD, end_of_document


@dataclass(frozen=True)
class Sequences:
    """`tokens_NT` (int64, padded with `PAD`) and the number of the document that each sequence comes from."""

    tokens_NT: Tensor
    document_N: np.ndarray

    def __len__(self) -> int:
        return len(self.document_N)

    def tokens(self) -> int:
        """Number of predicted tokens."""
        return int((self.tokens_NT[:, 1:] != PAD).sum())


def encode(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Sequences:
    """Tokenise `texts` into sequences of at most `length` tokens."""
    rows, documents, end = [], [], end_of_document(tokenizer)
    for number, encoding in enumerate(tokenizer.encode_batch(list(texts), add_special_tokens=False)):
        ids = [end, *encoding.ids, end]
        # Consecutive pieces share one token, so that every token but the first is predicted once.
        for start in range(0, len(ids) - 1, length - 1):
            rows.append(ids[start : start + length])
            documents.append(number)
    tokens_NT = torch.full((len(rows), length), PAD)
    for row_T, ids in zip(tokens_NT, rows, strict=True):
        row_T[: len(ids)] = torch.tensor(ids)
    return Sequences(tokens_NT, np.array(documents, dtype=np.int64))


class Batches:
    """Endless batches of `batch` numbers out of `count`: shuffled epochs end to end, in an order fixed by `seed`.

    Any batch can be asked for, so a resumed run needs its step number only. Raises ValueError for a count of 0.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._epochs: dict[int, np.ndarray] = {}

    def at(self, step: int) -> np.ndarray:
        """The numbers of batch `step`, counted from 0."""
        if self.count < 1:
            raise ValueError("there is no sequence to make batches of")
        start = step * self.batch
        first, last = start // self.count, (start + self.batch - 1) // self.count
        self._epochs = {epoch: self._epoch(epoch) for epoch in range(first, last + 1)}
        line = np.concatenate(list(self._epochs.values()))
        return line[start - first * self.count :][: self.batch]

    def _epoch(self, epoch: int) -> np.ndarray:
        known = self._epochs.get(epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(self.count) if known is None else known


def trim(tokens_BT: Tensor) -> Tensor:
    """Drop the columns that are padding in every row, to a multiple of 16; some column stays."""
    longest = max(1, int((tokens_BT != PAD).sum(1).max()))
    return tokens_BT[:, : min(tokens_BT.shape[1], -(-longest // 16) * 16)]


def readable(tokens_BT: Tensor) -> Tensor:
    """Tokens as a model can read them, some token in place of padding."""
    return tokens_BT.clamp(min=0)


def token_losses(logits_BTV: Tensor, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of each next token, `[B, T - 1]`, zero where none is predicted, and the mask of the rest.

    Padding is not predicted, nor, where positions are given, the first token of a document (position 0).
    """
    # Flat and with a padded last target: a softmax over a strided or copied vocabulary takes five times as long.
    target_BT = F.pad(tokens_BT[:, 1:], (0, 1), value=PAD)
    if positions_BT is not None:
        target_BT = target_BT.masked_fill(F.pad(positions_BT[:, 1:], (0, 1)) == 0, PAD)
    loss_N = F.cross_entropy(logits_BTV.float().flatten(0, 1), target_BT.flatten(), ignore_index=PAD, reduction="none")
    return loss_N.view(target_BT.shape)[:, :-1], target_BT[:, :-1] != PAD
