"""Paths of the controls: what memory does when it is the wrong one, a blocked one, or clustered by nothing.

Invariants
- Pure: paths and centroids in, paths out; a seed decides every draw.
- A path stays a path: each node is a child of the one before it.
- With nothing blocked a path is that of `route`, and blocking moves no document that did not use the block.

>>> wrong_paths(np.array([[0, 1], [1, 2]]), seed=0).tolist()
[[1, 2], [0, 1]]

Shapes: N documents, P levels, D dimensions, K nodes of a level.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from fedmem.errors import UsageError
from fedmem.routing.router import route
from fedmem.routing.tree import Tree

_FAR = 1e15  # of a blocked centroid: farther than any vector, and its square is still a float32


def wrong_paths(paths_NP: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """For each path one of another document from another level-1 cluster; unchanged where there is only one cluster."""
    shuffled_NP = paths_NP[np.random.default_rng(seed).permutation(len(paths_NP))]
    wrong_NP = paths_NP.copy()
    for cluster in np.unique(paths_NP[:, 0]):
        own_M, others = np.flatnonzero(paths_NP[:, 0] == cluster), shuffled_NP[shuffled_NP[:, 0] != cluster]
        if len(others):
            wrong_NP[own_M] = others[own_M % len(others)]
    return wrong_NP


def random_paths(paths_NP: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The same paths, dealt out anew at random: clusters of the same sizes at every level that mean nothing.

    Train the control on `random_paths` of the training documents, and measure it with those of the held-out ones.
    Deal to documents, not to sequences, so that a long document stays in one cluster.
    """
    return paths_NP[np.random.default_rng(seed).permutation(len(paths_NP))]


def blocked_paths(
    tree: Tree, vectors_ND: NDArray[np.float32], level: int, blocked: Collection[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Paths around the `blocked` nodes of a level (counted from 1), and which documents have no sibling left `[N]`.

    A document whose node is blocked goes on below the nearest sibling that is not [docs/method.md, §5]. One whose
    siblings are all blocked keeps its path, which must not be fetched: give it the generic block. A node that only
    repeats a blocked centroid, as spare ones do, holds nothing of its own and is blocked with it.

    Raises UsageError on a level or a node that the tree does not have.
    """
    _check(tree, level, blocked)
    blocked_K = _with_repeats(tree, level, np.array(sorted(blocked), dtype=np.int64))
    around_NP = route(_without(tree, level, blocked_K), vectors_ND)
    generic_N = blocked_K[around_NP[:, level - 1]]
    return np.where(generic_N[:, None], route(tree, vectors_ND), around_NP), generic_N


def second_best_paths(
    tree: Tree, vectors_ND: NDArray[np.float32], level: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """As `blocked_paths`, with the best node of a level blocked for each document by itself.

    At level 1 of the paper's tree that is the best 1/16 of the bank [docs/method.md, §5].
    """
    _check(tree, level, ())
    paths_NP, generic_N = route(tree, vectors_ND), np.zeros(len(vectors_ND), dtype=bool)
    best_N = paths_NP[:, level - 1].copy()
    for node in np.unique(best_N):
        own_N = best_N == node
        paths_NP[own_N], generic_N[own_N] = blocked_paths(tree, vectors_ND[own_N], level, [int(node)])
    return paths_NP, generic_N


def _check(tree: Tree, level: int, nodes: Collection[int]) -> None:
    if not 1 <= level <= tree.levels or not all(0 <= node < tree.branching**level for node in nodes):
        raise UsageError(f"The tree has no such node; it has {tree.levels} levels of {tree.branching}^level nodes.")


def _with_repeats(tree: Tree, level: int, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which nodes of a level are among `nodes` or have the centroid of one of them, `[K]`."""
    _, group_K = np.unique(tree.centroids[level - 1], axis=0, return_inverse=True)
    return np.isin(group_K, group_K[nodes])


def _without(tree: Tree, level: int, blocked_K: NDArray[np.bool_]) -> Tree:
    """The tree with the blocked nodes of a level out of every vector's reach."""
    moved = np.where(blocked_K[:, None], np.float32(_FAR), tree.centroids[level - 1])
    return Tree(tree.branching, tree.levels, (*tree.centroids[: level - 1], moved, *tree.centroids[level:]))
