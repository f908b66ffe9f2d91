"""A public corpus in two parts: what is trained on, and what is held out.

Invariants
- A document is held out by its own text alone: in every command, whatever its seed, so that what one of them holds
  out no other trains on. A text that occurs twice lies on one side.
- The corpus's digest covers every text in its order.

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
    """Public texts; both parts keep the order in which they were given."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Corpus":
        """Hold out the share of texts with the lowest digests. Raises UsageError where too few are left."""
        ranked = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
        held = set(ranked[: math.ceil(HELDOUT_SHARE * len(ranked))])
        corpus = cls(tuple(t for t in texts if t not in held), tuple(t for t in texts if t in held))
        if not corpus.train:
            raise UsageError("The corpus needs at least two different texts: one to train on and one to hold out.")
        return corpus

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all texts."""
        return hashlib.sha256(canonical_json([self.train, self.heldout])).hexdigest()
