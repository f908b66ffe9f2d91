"""Read vectors in several passes without keeping all of them, and draw the samples for one level of a tree.

Invariants
- A pass keeps one piece of at most `_ROWS` rows in memory, whatever the size of the source's chunks.
- Every pass yields the same rows in the same order, or raises a UsageError. All rows are finite float32 of one width.
- The sample of a node depends on (rows, node, seed), never on chunks, on `capacity`, or on other nodes.
- At most `capacity` rows are in memory at a time; other nodes are read in further passes. In addition about 30 bytes a
  row are needed: its node, and the row numbers in the order of their nodes.

>>> stream = Stream.of(lambda: iter([np.eye(4, dtype=np.float32)[:3], np.eye(4, dtype=np.float32)[3:]]))
>>> by_node = samples(stream, np.array([1, 0, 0, 1]), (9,), 2, most=2, capacity=2)
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
"""A function that is called once a pass. It returns the same vectors [n, dim] in the same order, in any chunks."""
Vectors = NDArray[Any] | Chunks

_ROWS = 8192


@dataclass(frozen=True)
class Stream:
    """A source of `count` rows with `dim` columns; each call of `pieces` reads them again."""

    open: Chunks
    count: int
    dim: int

    @classmethod
    def of(cls, vectors: Vectors) -> "Stream":
        """Read `vectors` once to count and check them.

        Args:
            vectors: an array [N, dim], or a function that returns the same chunks at each call.

        Raises:
            UsageError: there are no vectors, or they are not finite vectors of one width.
        """
        source = vectors if callable(vectors) else lambda: [vectors]
        count, dim = 0, 0
        for start, piece_ND in _checked_pieces(source):
            count, dim = start + len(piece_ND), piece_ND.shape[1]
        if not count:
            raise UsageError("A tree needs at least one vector. Name a corpus with text in it.")
        return cls(source, count, dim)

    def pieces(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Read all rows once: yield the number of each piece's first row, and its rows.

        Raises:
            UsageError: the vectors are not finite vectors of one width, or they changed since `of`.
        """
        count, has_changed = 0, False
        for start, piece_ND in _checked_pieces(self.open):
            count = start + len(piece_ND)
            if has_changed := count > self.count or piece_ND.shape[1] != self.dim:
                break
            yield start, piece_ND
        if has_changed or count != self.count:
            raise UsageError("The vectors changed between two passes. Give a function that starts them anew each time.")


def samples(
    stream: Stream, nodes_N: NDArray[Any], seed: Sequence[int], nodes: int, *, most: int, capacity: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield each node with its rows, in the order of the stream.

    The rows are in a buffer that the next pass overwrites. Use the rows of one node before the next one is taken.

    Args:
        stream: the rows.
        nodes_N: the node of each row.
        seed: decides which rows are drawn.
        nodes: number of nodes.
        most: the most rows of a node. A larger node gets so many rows, drawn uniformly.
        capacity: the most rows in memory, at least `most`. One pass serves as many nodes as fit.

    Raises:
        UsageError: the vectors changed between two passes.
    """
    row_numbers = _chosen_rows(nodes_N, seed, nodes, most)
    sizes = np.array([len(rows) for rows in row_numbers])
    groups = list(_groups(sizes.tolist(), capacity))
    buffer_HD = np.empty((max(sizes[first:last].sum() for first, last in groups), stream.dim), dtype=np.float32)
    for first, last in groups:
        rows_MD = buffer_HD[: sizes[first:last].sum()]
        _collect(stream, np.concatenate(row_numbers[first:last]), rows_MD)
        yield from enumerate(np.split(rows_MD, np.cumsum(sizes[first : last - 1])), first)


def _chosen_rows(nodes_N: NDArray[Any], seed: Sequence[int], nodes: int, most: int) -> list[NDArray[np.int64]]:
    """Return the row numbers of each node's sample, in ascending order."""
    sizes = np.bincount(nodes_N, minlength=nodes)
    node_rows = np.split(np.argsort(nodes_N, kind="stable"), np.cumsum(sizes)[:-1])
    for node in np.flatnonzero(sizes > most):
        rng = np.random.default_rng([*seed, int(node), 1])  # the 1 keeps it apart from the node's node_rows generator
        node_rows[node] = node_rows[node][np.sort(rng.choice(len(node_rows[node]), most, replace=False))]
    return node_rows


def _groups(sizes: Sequence[int], capacity: int) -> Iterator[tuple[int, int]]:
    """Yield runs of nodes, as (first, last + 1), whose sizes add up to at most `capacity`."""
    first, total = 0, 0
    for node, size in enumerate(sizes):
        if total + size > capacity:
            yield first, node
            first, total = node, 0
        total += size
    yield first, len(sizes)


def _collect(stream: Stream, rows_M: NDArray[np.int64], out_MD: NDArray[np.float32]) -> None:
    """Write the rows of `stream` with numbers `rows_M` into `out_MD`, in that order, with one pass."""
    slots_M = np.argsort(rows_M)
    sorted_M = rows_M[slots_M]
    for start, piece_ND in stream.pieces():
        low, high = np.searchsorted(sorted_M, [start, start + len(piece_ND)])
        out_MD[slots_M[low:high]] = piece_ND[sorted_M[low:high] - start]


def _checked_pieces(source: Chunks) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield pieces of at most `_ROWS` rows with the number of the first row. Raises UsageError for invalid vectors."""
    start, dim = 0, None
    for chunk_ND in map(np.asarray, source()):
        if chunk_ND.ndim != 2 or chunk_ND.shape[1] != (chunk_ND.shape[1] if dim is None else dim):
            raise UsageError("A tree needs vectors [N, dim] of one width. Embed every text with one embedder.")
        dim = chunk_ND.shape[1]
        for low in range(0, len(chunk_ND), _ROWS):
            piece_ND = np.ascontiguousarray(chunk_ND[low : low + _ROWS], dtype=np.float32)
            if not np.isfinite(piece_ND).all():
                raise UsageError("A tree needs finite vectors; some hold NaN or infinity. Check the embedder.")
            yield start, piece_ND
            start += len(piece_ND)
