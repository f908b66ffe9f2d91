"""The cluster tree: centroids by level, how to make them, keep them and step through them.

Invariants
- `centroids[l]` is float32 [k ** (l + 1), dim]; the children of node `n` are `n * k … n * k + k - 1` one level down.
- Training is a function of (vectors, branching, levels, seed): threads, chunking and order of the nodes change nothing.
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

_CHUNK = 1024  # vectors whose distances are held at once


@dataclass(frozen=True, eq=False)
class Tree:
    """Centroids of a balanced tree: `branching` children a node, `levels` levels below the root [HM, §Hierarchy]."""

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


def train_tree(vectors: NDArray[np.float32], *, branching: int, levels: int, seed: int) -> Tree:
    """Train a tree on `vectors` [N, dim], root to leaves, by balanced k-means [HM, §Hierarchy].

    Raises UsageError on no vectors, non-finite vectors, or a tree without choice.
    """
    from fedmem.routing.kmeans import balanced_kmeans  # here, not above: it loads faiss, and using a tree needs none

    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all() or branching < 2 or levels < 1:
        raise UsageError("A tree needs finite vectors [N, dim] with N > 0, branching >= 2 and levels >= 1.")
    nodes, centroids = np.zeros(len(vectors), dtype=np.int64), list[NDArray[np.float32]]()
    for level in range(levels):
        parents = centroids[-1] if centroids else vectors.mean(axis=0, keepdims=True)
        rngs = [np.random.default_rng([seed, level, node]) for node in range(branching**level)]
        children = [
            balanced_kmeans(vectors[nodes == node], branching, rng, parents[node]) for node, rng in enumerate(rngs)
        ]
        centroids.append(np.concatenate(children))
        nodes = Tree(branching, level + 1, tuple(centroids)).step(level, nodes, vectors)
    return Tree(branching, levels, tuple(centroids))
