"""Text to unit vectors, on the device, with numpy and tokenizers alone.

Invariants
- A text's vector depends on that text only, to the last bit: not on the batch it came in, its order, or threads.
  (Rows of the table are summed as integers, so the sum is exact.)
- Every vector is float32 and has length 1, except that of a text without tokens, which is zero.
- The files are read once, on first use, and never through pickle.

>>> vectors = StaticEmbedder().embed(["blood pressure", ""])
>>> vectors.shape, float(abs(vectors[1]).sum())
((2, 128), 0.0)
"""

import hashlib
import io
import itertools
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import resources
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_TABLE, _TOKENIZER = "minilm_static_128d_int8.npz", "tokenizer.json"
_BATCH = 256  # texts gathered at once: bounds the working set, changes no bit of the result


class Embedder(Protocol):
    """What routing and policy ask of an embedder; `digest` names its exact weights."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, dim], float32, length 1; zero for a text without tokens."""
        ...


class StaticEmbedder:
    """Mean of fixed word-piece vectors (distilled from all-MiniLM-L6-v2), 128 dimensions."""

    name = "static-minilm-128"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, 128] of `texts`; see the module for what is guaranteed."""
        out_ND = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _BATCH):
            encoded = self._tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
            self._fill(out_ND[start : start + _BATCH], [e.ids for e in encoded])
        return out_ND

    @property
    def dim(self) -> int:
        """Columns of the table."""
        return int(self._table[0].shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the table's and the tokenizer's bytes."""
        return hashlib.sha256(_read(_TABLE) + _read(_TOKENIZER)).hexdigest()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(_read(_TOKENIZER).decode())
        tokenizer.no_truncation()  # its file stops at 512 tokens, and what is not read cannot be judged or routed
        return tokenizer

    @cached_property
    def _table(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        with np.load(io.BytesIO(_read(_TABLE)), allow_pickle=False) as arrays:
            return arrays["q"], arrays["scale"].astype(np.float32)

    def _fill(self, out_ND: NDArray[np.float32], ids: list[list[int]]) -> None:
        """Write the unit mean of each id list into its row; rows of empty lists stay zero."""
        rows = [row for row, own in enumerate(ids) if own]
        if not rows:
            return
        lengths = [len(ids[row]) for row in rows]
        sums = self._sums([ids[row] for row in rows], lengths)
        means = sums * self._table[1] / np.asarray(lengths, dtype=np.float32)[:, None]
        out_ND[rows] = unit(means)

    def _sums(self, ids: Iterable[list[int]], lengths: list[int]) -> NDArray[np.float32]:
        flat = np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int64, count=sum(lengths))
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        exact: NDArray[np.int32] = np.add.reduceat(self._table[0][flat], starts, axis=0, dtype=np.int32)
        return exact.astype(np.float32)


def unit(rows_ND: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length 1; a zero row stays zero."""
    norms = np.sqrt((rows_ND * rows_ND).sum(axis=1, keepdims=True))
    return (rows_ND / np.where(norms > 0, norms, 1)).astype(np.float32)


def _read(name: str) -> bytes:
    return (resources.files("fedmem.routing") / "static_embed" / name).read_bytes()
