"""Compute the path of a text by greedy descent through the cluster tree, with numpy only.

Invariants
- Each step takes the plain nearest centroid. Nothing is balanced, sampled or learned here [docs/method.md, §3].
- In a batch each vector gets the same path as alone.
- Routing by a prefix uses nothing of the text that follows it [docs/method.md, §3].
- A path is computed on the device and never leaves it.

>>> from fedmem.routing.tree import Tree
>>> tree = Tree(2, 1, (np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32),))
>>> route(tree, np.array([[0.2, 0.8], [1.0, 0.0]], dtype=np.float32)).tolist()
[[1], [0]]
>>> prefix("The  Seine rises\\nin Burgundy and ends at Le Havre.", 4)
'The Seine rises in'
"""

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError, VersionMismatch
from fedmem.routing.tree import Tree


def route(tree: Tree, vectors_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the path of each vector. It costs levels times branching distances for each vector.

    Args:
        tree: the cluster tree of a release.
        vectors_ND: `[N, dim]`, or one vector `[dim]`, from the embedder of the release.

    Returns:
        `[N, levels]` int64: the node id at each level, from the root to a leaf.

    Raises:
        VersionMismatch: vectors and tree differ in dimension.
    """
    vectors_ND = np.atleast_2d(np.asarray(vectors_ND, dtype=np.float32))
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != tree.dim:
        raise VersionMismatch(
            "The vectors are of another embedder than the cluster tree. Use a release of the vectors' embedder."
        )
    paths_NL = np.empty((len(vectors_ND), tree.levels), dtype=np.int64)
    nodes_N = np.zeros(len(vectors_ND), dtype=np.int64)
    for level in range(tree.levels):
        nodes_N = paths_NL[:, level] = tree.step(level, nodes_N, vectors_ND)
    return paths_NL


def prefix(text: str, words: int) -> str:
    """Return the first words of a text, with one space between them, or all words of a shorter text.

    Args:
        text: any text.
        words: number of words, at least 1.

    Raises:
        UsageError: `words` is less than 1.
    """
    if words < 1:
        raise UsageError("A prefix has at least one word.")
    return " ".join(text.split(maxsplit=words)[:words])
