"""Turn texts into packed rows with a path for each row, as a training step needs them.

Invariants
- A row with a path holds documents of one leaf cluster; they all have this path.
- The path of a document is that of its whole text [docs/method.md, §3].

    train = routed_rows(release.tokenizer, corpus.train, 256, lambda texts: route(tree, embedder.embed(texts)))

Shapes: M rows, P levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from fedmem.anchor.tokenizer import PAD
from fedmem.training.packing import Packed, pack
from fedmem.training.sequences import Batches, encode

PathsOf = Callable[[Sequence[str]], np.ndarray]
"""A function from N texts to their paths `[N, P]`."""


@dataclass(frozen=True)
class Rows:
    """Packed rows and their paths `paths_MP`, int64. Rows for an anchor alone have P = 0."""

    packed: Packed
    paths_MP: np.ndarray

    def __len__(self) -> int:
        return len(self.packed)

    def select(self, mask_M: np.ndarray) -> "Rows":
        """Return the rows with True in the mask, in order.

        Args:
            mask_M: `[M]`, bool.
        """
        p = self.packed
        return Rows(Packed(p.tokens_MT[mask_M], p.positions_MT[mask_M], p.first_M[mask_M]), self.paths_MP[mask_M])

    def tokens(self, steps: int, batch: int, seed: int) -> int:
        """Return the number of tokens, without padding, that a run reads.

        Args:
            steps: number of steps of the run.
            batch: rows in a batch.
            seed: seed of the batches.
        """
        if not steps:
            return 0
        sizes_M, batches = (self.packed.tokens_MT != PAD).sum(1).numpy(), Batches(len(self), batch, seed)
        return int(sum(sizes_M[batches.at(step)].sum() for step in range(steps)))


def plain_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Rows:
    """Return rows for an anchor alone: a row can hold any documents.

    Args:
        tokenizer: the anchor's tokenizer.
        texts: documents.
        length: tokens of a row, at least 2.
    """
    packed = pack(encode(tokenizer, texts, length))
    return Rows(packed, np.zeros((len(packed), 0), dtype=np.int64))


def routed_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int, paths_of: PathsOf) -> Rows:
    """Return rows that are packed by leaf cluster.

    Args:
        tokenizer: the anchor's tokenizer.
        texts: documents.
        length: tokens of a row, at least 2.
        paths_of: gives the paths of the texts.
    """
    sequences = encode(tokenizer, texts, length)
    paths_NP = paths_of(texts)[sequences.document_N]
    packed = pack(sequences, paths_NP[:, -1])
    return Rows(packed, paths_NP[packed.first_M])
