"""Texts as packed rows, each with its path: what a training step takes.

Invariants
- A row holds documents of one leaf cluster, and all of them have its path.
- A document's path is that of its whole text [docs/method.md, §3].

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
"""Paths `[N, P]` of texts."""


@dataclass(frozen=True)
class Rows:
    """Packed rows and `paths_MP`, int64; no columns where nothing is fetched."""

    packed: Packed
    paths_MP: np.ndarray

    def __len__(self) -> int:
        return len(self.packed)

    def select(self, mask_M: np.ndarray) -> "Rows":
        """The rows that the mask names, in their order."""
        p = self.packed
        return Rows(Packed(p.tokens_MT[mask_M], p.positions_MT[mask_M], p.first_M[mask_M]), self.paths_MP[mask_M])

    def tokens(self, steps: int, batch: int, seed: int) -> int:
        """Tokens that a run of so many steps reads, padding aside."""
        if not steps:
            return 0
        sizes_M, batches = (self.packed.tokens_MT != PAD).sum(1).numpy(), Batches(len(self), batch, seed)
        return int(sum(sizes_M[batches.at(step)].sum() for step in range(steps)))


def plain_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Rows:
    """Rows of at most `length` tokens for an anchor alone: any documents may meet."""
    packed = pack(encode(tokenizer, texts, length))
    return Rows(packed, np.zeros((len(packed), 0), dtype=np.int64))


def routed_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int, paths_of: PathsOf) -> Rows:
    """Rows of at most `length` tokens, packed by leaf cluster."""
    sequences = encode(tokenizer, texts, length)
    paths_NP = paths_of(texts)[sequences.document_N]
    packed = pack(sequences, paths_NP[:, -1])
    return Rows(packed, paths_NP[packed.first_M])
