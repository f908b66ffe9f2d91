"""Vectors that are read more than once and never held whole, and what one level of a tree takes from them.

Invariants
- A pass holds one piece of at most `_ROWS` rows beside what its caller keeps, however the source cuts its chunks.
- Every pass gives the same rows in the same order, or ends in a UsageError; all are finite float32 of one width.
- The sample of a node depends on (rows, node, seed), never on chunks, on `held`, or on the other nodes.
- At most `held` rows are kept at a time; what does not fit is read in further passes. Book-keeping costs about 30
  bytes a row: its node, and the numbers of the rows in the order of their nodes.

>>> stream = Stream.of(lambda: iter([np.eye(4, dtype=np.float32)[:3], np.eye(4, dtype=np.float32)[3:]]))
>>> by_node = samples(stream, np.array([1, 0, 0, 1]), (9,), 2, most=2, held=2)
>>> [(node, rows_MD.argmax(axis=1).tolist()) for node, rows_MD in by_node]
[(0, [1, 2]), (1, [0, 3])]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError

Chunks = Callable[[], Iterable[NDArray[Any]]]
"""Called once a pass: the same vectors [n, dim] in the same order each time, in chunks of any size."""
Vectors = NDArray[Any] | Chunks

_ROWS = 8192


@dataclass(frozen=True)
class Stream:
    """`count` rows of `dim` columns, read again by each call of `pieces`."""

    open: Chunks
    count: int
    dim: int

    @classmethod
    def of(cls, vectors: Vectors) -> "Stream":
        """Read `vectors` once to measure and check them. Raises UsageError where there are none."""
        source = vectors if callable(vectors) else lambda: [vectors]
        count, dim = 0, 0
        for start, piece_ND in _checked(source):
            count, dim = start + len(piece_ND), piece_ND.shape[1]
        if not count:
            raise UsageError("A tree needs at least one vector. Name a corpus with text in it.")
        return cls(source, count, dim)

    def pieces(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """One pass: the number of each piece's first row, and its rows."""
        count, changed = 0, False
        for start, piece_ND in _checked(self.open):
            count = start + len(piece_ND)
            if changed := count > self.count or piece_ND.shape[1] != self.dim:
                break
            yield start, piece_ND
        if changed or count != self.count:
            raise UsageError("The vectors changed between two passes. Give a function that starts them anew each time.")


def samples(
    stream: Stream, nodes_N: NDArray[Any], seed: Sequence[int], nodes: int, *, most: int, held: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each node below `nodes` with its rows in stream order: all of them, or `most` drawn evenly with `seed`.

    `nodes_N` is the node of each row. Nodes are served in turn, as many a pass as fit in `held` rows (held >= most).
    Rows lie in a buffer that the next pass overwrites: done with one node before asking for the next.
    """
    wanted = _chosen(nodes_N, seed, nodes, most)
    sizes = np.array([len(rows) for rows in wanted])
    groups = list(_groups(sizes.tolist(), held))
    buffer_HD = np.empty((max(sizes[first:last].sum() for first, last in groups), stream.dim), dtype=np.float32)
    for first, last in groups:
        rows_MD = buffer_HD[: sizes[first:last].sum()]
        _collect(stream, np.concatenate(wanted[first:last]), rows_MD)
        yield from enumerate(np.split(rows_MD, np.cumsum(sizes[first : last - 1])), first)


def _chosen(nodes_N: NDArray[Any], seed: Sequence[int], nodes: int, most: int) -> list[NDArray[np.int64]]:
    """Ascending row numbers that each node takes."""
    sizes = np.bincount(nodes_N, minlength=nodes)
    own = np.split(np.argsort(nodes_N, kind="stable"), np.cumsum(sizes)[:-1])
    for node in np.flatnonzero(sizes > most):
        rng = np.random.default_rng([*seed, int(node), 1])  # the 1 keeps it apart from the node's own generator
        own[node] = own[node][np.sort(rng.choice(len(own[node]), most, replace=False))]
    return own


def _groups(sizes: Sequence[int], held: int) -> Iterator[tuple[int, int]]:
    """Runs of nodes whose sizes add up to no more than `held`."""
    first, total = 0, 0
    for node, size in enumerate(sizes):
        if total + size > held:
            yield first, node
            first, total = node, 0
        total += size
    yield first, len(sizes)


def _collect(stream: Stream, rows_M: NDArray[np.int64], out_MD: NDArray[np.float32]) -> None:
    """Write the rows of `stream` with numbers `rows_M`, in that order, by one pass."""
    slots_M = np.argsort(rows_M)
    sorted_M = rows_M[slots_M]
    for start, piece_ND in stream.pieces():
        low, high = np.searchsorted(sorted_M, [start, start + len(piece_ND)])
        out_MD[slots_M[low:high]] = piece_ND[sorted_M[low:high] - start]


def _checked(source: Chunks) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Pieces of at most `_ROWS` rows with the number of the first; UsageError for what is no vector of one width."""
    start, dim = 0, None
    for chunk_ND in map(np.asarray, source()):
        if chunk_ND.ndim != 2 or chunk_ND.shape[1] != (chunk_ND.shape[1] if dim is None else dim):
            raise UsageError("A tree needs vectors [N, dim] of one width. Embed every text with one embedder.")
        dim = chunk_ND.shape[1]
        for low in range(0, len(chunk_ND), _ROWS):
            piece_ND = np.ascontiguousarray(chunk_ND[low : low + _ROWS], dtype=np.float32)
            if not np.isfinite(piece_ND).all():
                raise UsageError("A tree needs finite vectors; some hold NaN or infinity. Look at the embedder.")
            yield start, piece_ND
            start += len(piece_ND)
