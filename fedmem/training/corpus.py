"""Split a public corpus into a training part and a held-out part.

Invariants
- The text of a document alone decides whether it is held out. So all commands hold out the same texts, whatever their
  seed. A text that occurs twice is in one part only.
- The digest of a corpus covers every text in order.

>>> corpus = Corpus.of([f"text {n}" for n in range(40)])
>>> len(corpus.train), len(corpus.heldout)
(38, 2)
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fedmem.errors import UsageError
from fedmem.storage.canonical import canonical_json

HELDOUT_SHARE = 0.05


@dataclass(frozen=True)
class Corpus:
    """A corpus of public texts. Both parts keep the order of the input."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Corpus":
        """Hold out the 5 % of texts with the lowest digests, rounded up.

        Args:
            texts: documents in their order.

        Raises:
            UsageError: no text is left to train on.
        """
        ranked = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
        heldout_texts = set(ranked[: math.ceil(HELDOUT_SHARE * len(ranked))])
        corpus = cls(
            tuple(text for text in texts if text not in heldout_texts),
            tuple(text for text in texts if text in heldout_texts),
        )
        if not corpus.train:
            raise UsageError("The corpus needs at least two different texts: one to train on and one to hold out.")
        return corpus

    @cached_property
    def digest(self) -> str:
        """The SHA-256 digest over all texts, in hexadecimal."""
        return hashlib.sha256(canonical_json([self.train, self.heldout])).hexdigest()
