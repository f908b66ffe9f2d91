"""Pack several documents of one leaf cluster into one training row [docs/method.md, §3].

Attention stays inside a document. Positions start again at 0 with each document; by this `transformers` recognises
packed sequences and masks them.

Invariants
- Every sequence is completely in one row, and a row holds sequences of one group only.
- No token is predicted from another document.
- Rows are a pure function of lengths and groups (best fit, longest first).

    packed = pack(encode(tokenizer, texts, 128), leaf_N)
    loss = packed_loss(model, *packed.batch(numbers_B))

Shapes: N sequences, M rows, B rows of a batch, T tokens.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.anchor.tokenizer import PAD
from fedmem.training.sequences import Sequences, readable, token_losses, trim


@dataclass(frozen=True)
class Packed:
    """Packed rows.

    Attributes:
        tokens_MT: token ids, int64, padded on the right.
        positions_MT: positions in the document, int64; 0 at the start of a document and at padding.
        first_M: the number of the first sequence of each row.
    """

    tokens_MT: Tensor
    positions_MT: Tensor
    first_M: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens_MT)

    def batch(self, numbers_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return tokens and positions of these rows, without the columns that are padding in all of them.

        Args:
            numbers_B: numbers of the rows.

        Returns:
            Tokens and positions, each `[B, T]` int64.
        """
        tokens_BT = trim(self.tokens_MT[numbers_B])
        return tokens_BT, self.positions_MT[numbers_B, : tokens_BT.shape[1]]


def pack(sequences: Sequences, groups_N: np.ndarray | None = None) -> Packed:
    """Pack sequences into rows of their length T.

    Args:
        sequences: the sequences, each as one unit.
        groups_N: the group of each sequence; a row holds one group. None: one group of all.
    """
    length = sequences.tokens_NT.shape[1]
    sizes_N = (sequences.tokens_NT != PAD).sum(1).numpy()
    groups_N = np.zeros(len(sequences), dtype=np.int64) if groups_N is None else groups_N
    rows = [row for group in np.unique(groups_N) for row in _fit(np.flatnonzero(groups_N == group), sizes_N, length)]
    tokens_MT = torch.full((len(rows), length), PAD)
    positions_MT = torch.zeros_like(tokens_MT)
    for number, row in enumerate(rows):
        stop = 0
        for sequence in row:
            start, stop = stop, stop + int(sizes_N[sequence])
            tokens_MT[number, start:stop] = sequences.tokens_NT[sequence, : stop - start]
            positions_MT[number, start:stop] = torch.arange(stop - start)
    return Packed(tokens_MT, positions_MT, np.array([row[0] for row in rows], dtype=np.int64))


def _fit(numbers: np.ndarray, sizes_N: np.ndarray, length: int) -> Iterator[list[int]]:
    """Yield rows by best fit, longest first: each sequence goes into the fullest row that still has room for it."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    for sequence in numbers[np.argsort(-sizes_N[numbers], kind="stable")].tolist():
        size = int(sizes_N[sequence])
        room = next((r for r in range(size, length + 1) if by_room[r]), None)
        if room is None:
            room = length
            by_room[room].append(len(rows))
            rows.append([])
        row = by_room[room].pop()
        rows[row].append(sequence)
        by_room[room - size].append(row)
    yield from rows


def packed_loss(model: PreTrainedModel, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """Return the mean cross entropy in nats per predicted token. The first token of a document is not predicted.

    Args:
        model: the anchor, with or without memory in use.
        tokens_BT: tokens of packed rows, padded with `PAD`.
        positions_BT: their positions; 0 at the start of a document.
    """
    logits_BTV = model(readable(tokens_BT), position_ids=positions_BT, use_cache=False).logits
    loss_BT, mask_BT = token_losses(logits_BTV, tokens_BT, positions_BT)
    return loss_BT.sum() / mask_BT.sum().clamp(min=1)
