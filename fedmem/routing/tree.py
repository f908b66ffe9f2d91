"""Train, save, load and use the cluster tree, which has centroids for each level.

Invariants
- `centroids[l]` is float32 [k ** (l + 1), dim]; the children of node `n` are `n * k … n * k + k - 1` one level down.
- Training is a function of (vectors in their order, branching, levels, seed). Threads and chunks change nothing.
- Training keeps at most `HELD` vectors in memory, whatever the size of the corpus.
- The coordinator trains a tree on public text. Using a tree needs numpy only.
- A node with fewer points than k also has k children. The additional ones repeat the first and are never chosen.

>>> tree = Tree(2, 1, (np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32),))
>>> tree.step(0, np.zeros(1, dtype=np.int64), np.array([[0.1, 0.9]], dtype=np.float32)).tolist()
[1]
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedmem.errors import UsageError, VerificationFailed
from fedmem.routing.stream import Stream, Vectors, samples
from fedmem.storage.canonical import canonical_json

HELD = 2**18  # vectors that training keeps in memory: 134 MB at 128 dimensions
_CHUNK = 256  # vectors whose distances are in memory at once


@dataclass(frozen=True, eq=False)
class Tree:
    """The centroids of a balanced tree: `branching` children for each node, `levels` levels below the root.

    Source: [docs/method.md, §3].
    """

    branching: int
    levels: int
    centroids: tuple[NDArray[np.float32], ...]

    def __post_init__(self) -> None:
        """Raise VerificationFailed if the centroids do not form a tree of finite float32 numbers."""
        dim = self.centroids[0].shape[-1] if self.centroids else 0
        expected_shapes = [(self.branching ** (n + 1), dim) for n in range(max(self.levels, 1))]
        are_finite = all(c.dtype == np.float32 and np.isfinite(c).all() for c in self.centroids)
        if [c.shape for c in self.centroids] != expected_shapes or not are_finite:
            raise VerificationFailed("The cluster tree has wrong shapes. Fetch or train its release again.")

    @property
    def dim(self) -> int:
        """The number of dimensions of a centroid."""
        return int(self.centroids[0].shape[1])

    @cached_property
    def digest(self) -> str:
        """The SHA-256 over shape and little-endian centroid bytes, in hex."""
        head = canonical_json({"branching": self.branching, "levels": self.levels, "dim": self.dim})
        return hashlib.sha256(head + b"".join(c.astype("<f4").tobytes() for c in self.centroids)).hexdigest()

    def step(self, level: int, nodes_N: NDArray[np.int64], vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the nearest child (L2, lowest index on a tie) of each parent node.

        Sums run over one vector at a time, so each vector of a batch gets the same child as alone.

        Args:
            level: of the children, counted from 0. At level 0 every parent is the root, 0.
            nodes_N: the parent of each vector.
            vectors_ND: `[N, dim]`.

        Returns:
            Node ids at `level`, `[N]` int64.
        """
        groups = self.centroids[level].reshape(-1, self.branching, self.dim)
        out_N = np.empty(len(vectors_ND), dtype=np.int64)
        for start in range(0, len(vectors_ND), _CHUNK):
            part = slice(start, start + _CHUNK)
            gaps = groups[nodes_N[part]] - vectors_ND[part, None, :]
            out_N[part] = nodes_N[part] * self.branching + (gaps * gaps).sum(axis=2).argmin(axis=1)
        return out_N

    def save(self, path: Path) -> None:
        """Write the centroids as safetensors, with one tensor `level-<n>` for each level.

        Args:
            path: the file; an existing one is replaced.
        """
        Path(path).write_bytes(save_tensors({f"level-{n + 1}": c for n, c in enumerate(self.centroids)}))

    @classmethod
    def load(cls, path: Path) -> "Tree":
        """Read a tree from a file that `save` wrote.

        Args:
            path: the file.

        Raises:
            VerificationFailed: the file holds no tree.
        """
        try:
            tensors = load_tensors(Path(path).read_bytes())
            centroids = tuple(tensors[f"level-{n + 1}"] for n in range(len(tensors)))
        except (SafetensorError, KeyError) as error:
            raise VerificationFailed("The cluster tree cannot be read. Fetch or train its release again.") from error
        return cls(centroids[0].shape[0] if centroids else 0, len(centroids), centroids)


def train_tree(vectors: Vectors, *, branching: int, levels: int, seed: int) -> Tree:
    """Train a tree from the root to the leaves by balanced k-means [docs/method.md, §3].

    Each node learns from its own vectors. If it has more than one k-means can use (NODE_POINTS), they are drawn
    uniformly. Each level reads the vectors twice, and about once more for each further HELD vectors that its nodes
    use. So embed into a file first. Memory holds HELD vectors, the centroids, and about 30 bytes for each vector.

    Args:
        vectors: an array [N, dim], or a function that returns the same chunks [n, dim] at each call.
        branching: children of each node, at least 2.
        levels: levels below the root, at least 1.
        seed: decides every draw.

    Returns:
        The trained tree.

    Raises:
        UsageError: there are no vectors, they are not finite or not of one width, the chunks change between calls, or
            `branching` or `levels` is too small.
    """
    if branching < 2 or levels < 1:
        raise UsageError("A cluster tree needs branching of at least 2 and at least 1 level.")
    stream = Stream.of(vectors)
    nodes_N, centroids = np.zeros(stream.count, dtype=np.int32), list[NDArray[np.float32]]()
    for level in range(levels):
        if level:
            _descend(Tree(branching, level, tuple(centroids)), stream, nodes_N)
        parents_KD = centroids[-1] if level else np.zeros((1, stream.dim), dtype=np.float32)
        centroids.append(_children(stream, nodes_N, parents_KD, branching, (seed, level)))
    return Tree(branching, levels, tuple(centroids))


def _children(
    stream: Stream, nodes_N: NDArray[np.int32], parents_KD: NDArray[np.float32], branching: int, seed: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the centroids one level below `parents_KD`.

    This is a separate function so that its buffer is freed before the next one is made.
    """
    from fedmem.routing.kmeans import NODE_POINTS, balanced_kmeans  # here: it loads faiss, and using a tree needs none

    children = list[NDArray[np.float32]]()
    for node, points_MD in samples(stream, nodes_N, seed, len(parents_KD), most=NODE_POINTS, capacity=HELD):
        children.append(balanced_kmeans(points_MD, branching, np.random.default_rng([*seed, node]), parents_KD[node]))
    return np.concatenate(children)


def _descend(tree: Tree, stream: Stream, nodes_N: NDArray[np.int32]) -> None:
    """Replace the node of each vector by its nearest child in the last level of `tree`."""
    for start, piece_ND in stream.pieces():
        part = slice(start, start + len(piece_ND))
        nodes_N[part] = tree.step(tree.levels - 1, nodes_N[part].astype(np.int64), piece_ND)
