"""TF-IDF with hashed words: an embedder for tests, from numpy alone.

Invariants
- A vector depends on the text, the seed and the texts that words were counted in; on no batch, order or process.
- Words that share a slot share a weight and a column: near enough for a test, too coarse for a release.

>>> HashedEmbedder(dim=64).embed(["a river in France", ""]).shape
(2, 64)
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError
from fedmem.routing.embedder import unit
from fedmem.storage.canonical import canonical_json

_WORD = re.compile(r"\w+")
_SLOTS = 2**16  # of the table of document frequencies


class HashedEmbedder:
    """Each word adds its weight, with a hashed sign, to one hashed column; rare words of `counted_in` weigh most."""

    name = "hashed-tfidf"

    def __init__(self, dim: int = 256, seed: int = 0, counted_in: Sequence[str] = ()) -> None:
        if dim < 1 or seed < 0:
            raise UsageError("A hashed embedder needs at least one dimension and a seed of at least 0.")
        self.dim, self.seed = dim, seed
        self._key = hashlib.sha256(str(seed).encode()).digest()
        with_S = np.zeros(_SLOTS, dtype=np.int64)
        for text in counted_in:
            with_S[list({self._hash(word) % _SLOTS for word in _words(text)})] += 1
        self._weight_S = np.log((1 + len(counted_in)) / (1 + with_S)).astype(np.float32) + 1

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, dim] of `texts`; see the module for what is guaranteed."""
        sums_ND = np.zeros((len(texts), self.dim), dtype=np.float64)
        for row, text in enumerate(texts):
            for word, times in Counter(_words(text)).items():
                number = self._hash(word)
                sign = 1 - 2 * (number >> 63)
                sums_ND[row, (number >> 16) % self.dim] += sign * times * self._weight_S[number % _SLOTS]
        return unit(sums_ND)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over dimensions, seed and weights."""
        head = canonical_json({"name": self.name, "dim": self.dim, "seed": self.seed})
        return hashlib.sha256(head + self._weight_S.astype("<f4").tobytes()).hexdigest()

    def _hash(self, word: str) -> int:
        return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8, key=self._key).digest(), "little")


def _words(text: str) -> Iterable[str]:
    return _WORD.findall(text.lower())
