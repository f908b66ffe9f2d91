"""Embed texts by TF-IDF with hashed words: an embedder for tests, with numpy only.

Invariants
- A vector depends on the text, the seed and the texts in which words were counted. Batch, order and process change
  nothing.
- Words in the same slot have the same weight, so the vectors are good enough for tests but not for a release.

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
    """An embedder in which each word adds its weight, with a hashed sign, to one hashed column.

    Args:
        dim: number of dimensions, at least 1.
        seed: of the hash, at least 0.
        counted_in: texts in which documents are counted for each word; rare words get the greatest weights.

    Raises:
        UsageError: `dim` or `seed` is too small.
    """

    name = "hashed-tfidf"

    def __init__(self, dim: int = 256, seed: int = 0, counted_in: Sequence[str] = ()) -> None:
        if dim < 1 or seed < 0:
            raise UsageError("A hashed embedder needs at least one dimension and a seed of at least 0.")
        self.dim, self.seed = dim, seed
        self._key = hashlib.sha256(str(seed).encode()).digest()
        documents_S = np.zeros(_SLOTS, dtype=np.int64)
        for text in counted_in:
            documents_S[list({self._hash(word) % _SLOTS for word in _words(text)})] += 1
        self._weight_S = np.log((1 + len(counted_in)) / (1 + documents_S)).astype(np.float32) + 1

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors [N, dim] of `texts`; the module's invariants hold."""
        sums_ND = np.zeros((len(texts), self.dim), dtype=np.float64)
        for row, text in enumerate(texts):
            for word, times in Counter(_words(text)).items():
                word_hash = self._hash(word)
                sign = 1 - 2 * (word_hash >> 63)
                sums_ND[row, (word_hash >> 16) % self.dim] += sign * times * self._weight_S[word_hash % _SLOTS]
        return unit(sums_ND)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 over name, dimensions, seed and weights, in hex."""
        head = canonical_json({"name": self.name, "dim": self.dim, "seed": self.seed})
        return hashlib.sha256(head + self._weight_S.astype("<f4").tobytes()).hexdigest()

    def _hash(self, word: str) -> int:
        return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8, key=self._key).digest(), "little")


def _words(text: str) -> Iterable[str]:
    return _WORD.findall(text.lower())
