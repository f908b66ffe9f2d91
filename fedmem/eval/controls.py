"""Compute the paths of controls: with wrong memory, with blocked memory, or with random clusters.

Invariants
- Pure functions of paths and centroids; a seed decides every draw.
- In every path each node is a child of the node before it.
- If nothing is blocked, a path equals that of `route`. Blocking a node changes no path that did not use it.

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

_FAR = 1e15  # coordinate of a blocked centroid: farther than any vector, and its square is still a float32


def wrong_paths(paths_NP: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return for each document the path of a random document in another level-1 cluster.

    Args:
        paths_NP: the path of each document.
        seed: decides the draw.

    Returns:
        `[N, P]`; unchanged if there is only one cluster.
    """
    shuffled_NP = paths_NP[np.random.default_rng(seed).permutation(len(paths_NP))]
    wrong_NP = paths_NP.copy()
    for cluster in np.unique(paths_NP[:, 0]):
        inside_M, others = np.flatnonzero(paths_NP[:, 0] == cluster), shuffled_NP[shuffled_NP[:, 0] != cluster]
        if len(others):
            wrong_NP[inside_M] = others[inside_M % len(others)]
    return wrong_NP


def random_paths(paths_NP: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return a random permutation of the paths: random clusters with the same sizes at every level.

    Train the control on `random_paths` of the training documents, and measure it with those of the held-out documents.
    Permute paths of documents, not of sequences, so that a long document stays in one cluster.

    Args:
        paths_NP: the path of each document.
        seed: decides the permutation.
    """
    return paths_NP[np.random.default_rng(seed).permutation(len(paths_NP))]


def blocked_paths(
    tree: Tree, vectors_ND: NDArray[np.float32], level: int, blocked: Collection[int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return paths that avoid blocked nodes.

    A document whose node is blocked takes its nearest sibling that is not blocked [docs/method.md, §5]. If all siblings
    are blocked, the document keeps its path. Do not fetch such a path: use the generic block. A node with the same
    centroid as a blocked node has no data and is blocked too.

    Args:
        tree: the cluster tree.
        vectors_ND: the vector of each document.
        level: of the blocked nodes, counted from 1.
        blocked: ids of the blocked nodes.

    Returns:
        The paths, `[N, P]`, and for each document True if no sibling is left, `[N]`.

    Raises:
        UsageError: the tree has no such level or node.
    """
    _check(tree, level, blocked)
    blocked_K = _with_repeats(tree, level, np.array(sorted(blocked), dtype=np.int64))
    around_NP = route(_without(tree, level, blocked_K), vectors_ND)
    generic_N = blocked_K[around_NP[:, level - 1]]
    return np.where(generic_N[:, None], route(tree, vectors_ND), around_NP), generic_N


def second_best_paths(
    tree: Tree, vectors_ND: NDArray[np.float32], level: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return paths as `blocked_paths` does, with the best node of a level blocked for each document separately.

    At level 1 of the paper's tree this blocks the best 1/16 of the bank [docs/method.md, §5].

    Args:
        tree: the cluster tree.
        vectors_ND: the vector of each document.
        level: of the blocked node, counted from 1.

    Raises:
        UsageError: the tree has no such level.
    """
    _check(tree, level, ())
    paths_NP, generic_N = route(tree, vectors_ND), np.zeros(len(vectors_ND), dtype=bool)
    best_N = paths_NP[:, level - 1].copy()
    for node in np.unique(best_N):
        has_node_N = best_N == node
        paths_NP[has_node_N], generic_N[has_node_N] = blocked_paths(tree, vectors_ND[has_node_N], level, [int(node)])
    return paths_NP, generic_N


def _check(tree: Tree, level: int, nodes: Collection[int]) -> None:
    if not 1 <= level <= tree.levels or not all(0 <= node < tree.branching**level for node in nodes):
        raise UsageError(f"The tree has no such node; it has {tree.levels} levels of {tree.branching}^level nodes.")


def _with_repeats(tree: Tree, level: int, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each node of a level True if it is one of `nodes` or has the same centroid as one, `[K]`."""
    _, group_K = np.unique(tree.centroids[level - 1], axis=0, return_inverse=True)
    return np.isin(group_K, group_K[nodes])


def _without(tree: Tree, level: int, blocked_K: NDArray[np.bool_]) -> Tree:
    """Return the tree with the blocked nodes of a level moved so far that no vector reaches them."""
    moved = np.where(blocked_K[:, None], np.float32(_FAR), tree.centroids[level - 1])
    return Tree(tree.branching, tree.levels, (*tree.centroids[: level - 1], moved, *tree.centroids[level:]))
