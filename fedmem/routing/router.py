"""The path of a text: greedy descent through the cluster tree, with numpy alone.

Invariants
- At use the plain nearest centroid wins; nothing is balanced, sampled or learned here [docs/method.md, §3].
- A batch gives each vector the path that it gets alone.
- A prefix is what a reader has seen of a text: routing by it leaks nothing of what follows [docs/method.md, §3].
- Nothing leaves: a path is computed on the device and stays there.

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
    """Paths int64 [N, levels] of `vectors_ND` [N, dim] (or [dim], one vector): node id at each level, root to leaf.

    Greedy: levels times branching distances. Raises VersionMismatch where the vectors are not of the tree's embedder.
    """
    vectors_ND = np.atleast_2d(np.asarray(vectors_ND, dtype=np.float32))
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != tree.dim:
        raise VersionMismatch("Vectors and cluster tree differ in dimension. Use the embedder of the tree's release.")
    paths_NL = np.empty((len(vectors_ND), tree.levels), dtype=np.int64)
    nodes_N = np.zeros(len(vectors_ND), dtype=np.int64)
    for level in range(tree.levels):
        nodes_N = paths_NL[:, level] = tree.step(level, nodes_N, vectors_ND)
    return paths_NL


def prefix(text: str, words: int) -> str:
    """The first `words` words of `text`, one space between them; all of a shorter text. Raises UsageError below one."""
    if words < 1:
        raise UsageError("A prefix has at least one word.")
    return " ".join(text.split(maxsplit=words)[:words])
