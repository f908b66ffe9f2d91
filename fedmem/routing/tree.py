"""The cluster tree: centroids by level, how to make them, keep them and step through them.

Invariants
- `centroids[l]` is float32 [k ** (l + 1), dim]; the children of node `n` are `n * k … n * k + k - 1` one level down.
- Training is a function of (vectors in their order, branching, levels, seed): threads and chunks change nothing.
- Training never holds all vectors: at most `HELD` of them, whatever the corpus.
- A tree is trained on public text by the coordinator; using it needs numpy only.
- A node with fewer points than k has k children too: its spare ones repeat the first and are never chosen.

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

from fedmem.canonical import canonical_json
from fedmem.errors import UsageError, VerificationFailed
from fedmem.routing.stream import Stream, Vectors, samples

HELD = 2**18  # vectors that training keeps: 134 MB at 128 dimensions
_CHUNK = 256  # vectors whose distances are held at once


@dataclass(frozen=True, eq=False)
class Tree:
    """Centroids of a balanced tree: `branching` children a node, `levels` levels below the root.

    Source: [docs/method.md, §3].
    """

    branching: int
    levels: int
    centroids: tuple[NDArray[np.float32], ...]

    def __post_init__(self) -> None:
        """Raise VerificationFailed where the shapes do not make a tree of finite numbers."""
        dim = self.centroids[0].shape[-1] if self.centroids else 0
        wanted = [(self.branching ** (n + 1), dim) for n in range(max(self.levels, 1))]
        sound = all(c.dtype == np.float32 and np.isfinite(c).all() for c in self.centroids)
        if [c.shape for c in self.centroids] != wanted or not sound:
            raise VerificationFailed("The cluster tree has wrong shapes. Fetch or train its release again.")

    @property
    def dim(self) -> int:
        """Dimensions of a centroid."""
        return int(self.centroids[0].shape[1])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape and little-endian centroid bytes."""
        head = canonical_json({"branching": self.branching, "levels": self.levels, "dim": self.dim})
        return hashlib.sha256(head + b"".join(c.astype("<f4").tobytes() for c in self.centroids)).hexdigest()

    def step(self, level: int, nodes_N: NDArray[np.int64], vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
        """Nearest child (L2, lowest index on a tie) at `level` of each parent in `nodes_N`; node ids int64 [N].

        At level 0 every parent is the root, 0. Sums run over one vector at a time, so a batch equals its single items.
        """
        groups = self.centroids[level].reshape(-1, self.branching, self.dim)
        out_N = np.empty(len(vectors_ND), dtype=np.int64)
        for start in range(0, len(vectors_ND), _CHUNK):
            part = slice(start, start + _CHUNK)
            gaps = groups[nodes_N[part]] - vectors_ND[part, None, :]
            out_N[part] = nodes_N[part] * self.branching + (gaps * gaps).sum(axis=2).argmin(axis=1)
        return out_N

    def save(self, path: Path) -> None:
        """Write the centroids as safetensors, one tensor `level-<n>` a level."""
        Path(path).write_bytes(save_tensors({f"level-{n + 1}": c for n, c in enumerate(self.centroids)}))

    @classmethod
    def load(cls, path: Path) -> "Tree":
        """Read what `save` wrote. Raises VerificationFailed where the file is no tree."""
        try:
            tensors = load_tensors(Path(path).read_bytes())
            centroids = tuple(tensors[f"level-{n + 1}"] for n in range(len(tensors)))
        except (SafetensorError, KeyError) as error:
            raise VerificationFailed("The cluster tree cannot be read. Fetch or train its release again.") from error
        return cls(centroids[0].shape[0] if centroids else 0, len(centroids), centroids)


def train_tree(vectors: Vectors, *, branching: int, levels: int, seed: int) -> Tree:
    """Train a tree, root to leaves, by balanced k-means [docs/method.md, §3].

    `vectors` is an array [N, dim] or a function that starts the same chunks [n, dim] anew at each call. Each node
    learns from its own vectors, evenly drawn where it has more than one k-means can use (NODE_POINTS). A level reads
    the vectors twice, and about once more for each further HELD that its nodes want, so embed into a file first.
    Kept in memory: HELD vectors, the centroids, and about 30 bytes of book-keeping a vector.

    Raises UsageError on no vectors, non-finite vectors, a function whose chunks change, or a tree without choice.
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
    """Centroids one level below `parents_KD`. A function of its own, so that its buffer is gone before the next one."""
    from fedmem.routing.kmeans import NODE_POINTS, balanced_kmeans  # here: it loads faiss, and using a tree needs none

    children = list[NDArray[np.float32]]()
    for node, points_MD in samples(stream, nodes_N, seed, len(parents_KD), most=NODE_POINTS, held=HELD):
        children.append(balanced_kmeans(points_MD, branching, np.random.default_rng([*seed, node]), parents_KD[node]))
    return np.concatenate(children)


def _descend(tree: Tree, stream: Stream, nodes_N: NDArray[np.int32]) -> None:
    """Take each vector one level down, to its nearest child in the last level of `tree`."""
    for start, piece_ND in stream.pieces():
        part = slice(start, start + len(piece_ND))
        nodes_N[part] = tree.step(tree.levels - 1, nodes_N[part].astype(np.int64), piece_ND)
