"""Paths of the controls, against routing with the blocked nodes taken out by hand."""

import numpy as np
import pytest

from fedmem.errors import UsageError
from fedmem.eval.controls import blocked_paths, random_paths, second_best_paths, wrong_paths
from fedmem.routing.router import route
from fedmem.routing.tree import Tree, train_tree

K, LEVELS = 4, 3


def vectors(count=300, dim=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


TRAINING = vectors(2000)
TREE = train_tree(TRAINING, branching=K, levels=LEVELS, seed=3)
QUERIES = vectors(150, seed=1)
PATHS = route(TREE, QUERIES)


def by_hand(vector, level, blocked):
    """Greedy descent over lists, where some nodes of a level are no choice; None where none is left."""
    path, node = [], 0
    for depth in range(LEVELS):
        children = range(node * K, node * K + K)
        choice = [child for child in children if depth + 1 != level or child not in blocked]
        if not choice:
            return None
        node = min(choice, key=lambda child: ((TREE.centroids[depth][child] - vector) ** 2).sum())
        path.append(node)
    return path


@pytest.mark.parametrize(
    ("level", "blocked"), [(1, {2}), (1, {0, 1, 3}), (2, {0, 5, 6, 15}), (3, set(range(0, 64, 3)))]
)
def test_blocked_nodes_are_walked_around(level, blocked):
    paths, generic = blocked_paths(TREE, QUERIES, level, blocked)
    assert not generic.any()
    assert paths.tolist() == [by_hand(vector, level, blocked) for vector in QUERIES]
    assert not np.isin(paths[:, level - 1], list(blocked)).any()


def test_documents_that_do_not_use_a_blocked_node_keep_their_paths():
    paths, _ = blocked_paths(TREE, QUERIES, 1, {2})
    elsewhere = PATHS[:, 0] != 2
    assert 0 < elsewhere.sum() < len(PATHS)
    assert (paths[elsewhere] == PATHS[elsewhere]).all()


def test_without_a_sibling_left_the_generic_block_takes_over():
    blocked = {4, 5, 6, 7, 9}
    paths, generic = blocked_paths(TREE, QUERIES, 2, blocked)
    assert generic.tolist() == [by_hand(vector, 2, blocked) is None for vector in QUERIES]
    assert generic.any()
    assert (paths[generic] == PATHS[generic]).all()


def test_nothing_blocked_is_plain_routing():
    paths, generic = blocked_paths(TREE, QUERIES, 1, ())
    assert (paths == PATHS).all()
    assert not generic.any()


@pytest.mark.parametrize("level", [1, 2])
def test_second_best_leaves_out_the_best_of_each_document(level):
    paths, generic = second_best_paths(TREE, QUERIES, level)
    assert not generic.any()
    assert paths.tolist() == [by_hand(v, level, {own}) for v, own in zip(QUERIES, PATHS[:, level - 1], strict=True)]


def test_a_spare_node_is_no_sibling():
    lone = np.array([[1, 0], [1, 0], [-1, 0], [-1, 0]], dtype=np.float32)  # the second child repeats the first
    tree = Tree(2, 2, (np.array([[1, 0], [-1, 0]], dtype=np.float32), lone))
    paths, generic = second_best_paths(tree, lone[:1], level=2)
    assert generic.tolist() == [True]
    assert paths.tolist() == [[0, 0]]


@pytest.mark.parametrize(("level", "blocked"), [(0, {0}), (4, {0}), (1, {4}), (2, {-1})])
def test_nodes_that_are_not_there_cannot_be_blocked(level, blocked):
    with pytest.raises(UsageError):
        blocked_paths(TREE, QUERIES, level, blocked)


@pytest.mark.parametrize("level", [0, 4])
def test_no_best_at_a_level_that_is_not_there(level):
    with pytest.raises(UsageError):
        second_best_paths(TREE, QUERIES, level)


def test_a_wrong_path_is_that_of_a_document_of_another_cluster():
    wrong = wrong_paths(PATHS, seed=5)
    assert (wrong[:, 0] != PATHS[:, 0]).all()
    assert {tuple(path) for path in wrong.tolist()} <= {tuple(path) for path in PATHS.tolist()}
    assert (wrong == wrong_paths(PATHS, seed=5)).all()
    assert (wrong != wrong_paths(PATHS, seed=6)).any()


def test_wrong_paths_are_those_of_a_loop_over_documents():
    shuffled = PATHS[np.random.default_rng(5).permutation(len(PATHS))]
    for number, path in enumerate(wrong_paths(PATHS, seed=5)):
        others = [other.tolist() for other in shuffled if other[0] != PATHS[number, 0]]
        assert path.tolist() == others[number % len(others)]


def test_with_one_cluster_there_is_no_wrong_path():
    paths = PATHS[PATHS[:, 0] == 1]
    assert (wrong_paths(paths, seed=5) == paths).all()


def test_random_clusters_have_the_same_sizes_and_mean_nothing():
    paths = route(TREE, TRAINING)
    dealt = random_paths(paths, seed=2)
    for level in range(LEVELS):
        assert np.array_equal(*(np.bincount(p[:, level], minlength=K ** (level + 1)) for p in (paths, dealt)))
    assert (dealt[:, 0] == dealt[:, 1] // K).all()
    assert (dealt == random_paths(paths, seed=2)).all()
    expected = ((np.bincount(paths[:, 0]) / len(paths)) ** 2).sum()
    assert abs((dealt[:, 0] == paths[:, 0]).mean() - expected) < 0.05  # planted: without shuffling it is 1
