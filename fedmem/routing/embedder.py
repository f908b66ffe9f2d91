"""Embed texts as unit vectors, on the device, with numpy and tokenizers only.

Invariants
- A text's vector depends on that text only, to the last bit. Batch, order and threads change nothing.
  (Rows of the table are summed as integers, so the sum is exact.)
- Every vector is float32 and has length 1. The vector of a text without tokens is zero.
- The files are read once, on first use, and never with pickle.

>>> vectors = StaticEmbedder().embed(["blood pressure", ""])
>>> vectors.shape, float(abs(vectors[1]).sum())
((2, 128), 0.0)
"""

import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_TABLE, _TOKENIZER = "minilm_static_128d_int8.npz", "tokenizer.json"
_BLOCK = 2**16  # tokens that are added in one step
_BATCH = 256  # texts in one step: limits the memory, changes no bit of the result


class Embedder(Protocol):
    """An embedder, as routing and policy use it; `digest` identifies its exact weights."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a vector for each text.

        Args:
            texts: N texts, of any length.

        Returns:
            `[N, dim]` float32, of length 1; zero for a text without tokens.
        """
        ...


class StaticEmbedder:
    """The mean of fixed word-piece vectors (distilled from all-MiniLM-L6-v2), 128 dimensions."""

    name = "static-minilm-128"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a vector for each text; the module's invariants hold.

        Args:
            texts: N texts, of any length.

        Returns:
            `[N, 128]` float32, of length 1; zero for a text without tokens.
        """
        out_ND = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _BATCH):
            encoded = self._tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
            self._fill(out_ND[start : start + _BATCH], [e.ids for e in encoded])
        return out_ND

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        return int(self._table[0].shape[1])

    @cached_property
    def digest(self) -> str:
        """The SHA-256 over the bytes of table and tokenizer, in hex."""
        return hashlib.sha256(_read(_TABLE) + _read(_TOKENIZER)).hexdigest()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(_read(_TOKENIZER).decode())
        tokenizer.no_truncation()  # its file stops at 512 tokens, but the whole text must be judged and routed
        return tokenizer

    @cached_property
    def _table(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        with np.load(io.BytesIO(_read(_TABLE)), allow_pickle=False) as arrays:
            return arrays["q"], arrays["scale"].astype(np.float32)

    def _fill(self, out_ND: NDArray[np.float32], ids: list[list[int]]) -> None:
        """Write the unit mean of each id list into its row; rows of empty lists stay zero."""
        rows = [row for row, text_ids in enumerate(ids) if text_ids]
        if not rows:
            return
        lengths = [len(ids[row]) for row in rows]
        sums = np.stack([self._sum(ids[row]) for row in rows])
        means = sums * self._table[1] / np.asarray(lengths, dtype=np.float32)[:, None]
        out_ND[rows] = unit(means)

    def _sum(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the sum of the table's rows: exact, since a block of int8 rows adds up below 2^24."""
        blocks = (np.asarray(ids[start : start + _BLOCK]) for start in range(0, len(ids), _BLOCK))
        # A product with ones is several times as fast as `add.reduceat` over int8.
        sums = (np.ones(len(block), np.float32) @ self._table[0][block].astype(np.float32) for block in blocks)
        exact: NDArray[np.int64] = np.sum([sum_D.astype(np.int64) for sum_D in sums], axis=0)
        return exact.astype(np.float32)


def unit(rows_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return rows scaled to length 1.

    Args:
        rows_ND: `[N, D]`, finite.

    Returns:
        `[N, D]` float32. A zero row stays zero.
    """
    norms = np.sqrt((rows_ND * rows_ND).sum(axis=1, keepdims=True))
    return (rows_ND / np.where(norms > 0, norms, 1)).astype(np.float32)


def _read(name: str) -> bytes:
    return (resources.files("fedmem.routing") / "static_embed" / name).read_bytes()
