"""Greedy descent against a loop that does it by hand, and against faiss."""

import time
import warnings

import numpy as np
import pytest

from fedmem.errors import UsageError, VersionMismatch
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.router import prefix, route
from fedmem.routing.tree import Tree

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's types, on newer Pythons
    import faiss

K, LEVELS, DIM = 3, 3, 8


@pytest.fixture(scope="module")
def tree() -> Tree:
    rng = np.random.default_rng(5)
    return Tree(K, LEVELS, tuple(rng.normal(size=(K ** (n + 1), DIM)).astype(np.float32) for n in range(LEVELS)))


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(6).normal(size=(2500, DIM)).astype(np.float32)


def by_hand(tree: Tree, vector: np.ndarray) -> list[int]:
    path, node = [], 0
    for level in range(tree.levels):
        children = range(node * tree.branching, (node + 1) * tree.branching)
        gaps = [float(((tree.centroids[level][c].astype(float) - vector) ** 2).sum()) for c in children]
        node = children[int(np.argmin(gaps))]
        path.append(node)
    return path


def test_equals_descent_by_hand(tree: Tree, vectors: np.ndarray) -> None:
    assert route(tree, vectors[:300]).tolist() == [by_hand(tree, vector) for vector in vectors[:300]]


def test_one_level_equals_an_exact_search_by_faiss(tree: Tree, vectors: np.ndarray) -> None:
    flat = Tree(K**LEVELS, 1, tree.centroids[-1:])
    index = faiss.IndexFlatL2(DIM)
    index.add(flat.centroids[0])
    assert np.array_equal(route(flat, vectors), index.search(vectors, 1)[1])


def test_a_batch_equals_its_items_and_any_order(tree: Tree, vectors: np.ndarray) -> None:
    paths = route(tree, vectors)
    assert np.array_equal(np.concatenate([route(tree, vector) for vector in vectors[:100]]), paths[:100])
    assert np.array_equal(route(tree, vectors[::-1]), paths[::-1])


def test_one_query_takes_less_than_two_milliseconds() -> None:
    rng = np.random.default_rng(0)
    tree = Tree(16, 3, tuple(rng.normal(size=(16 ** (n + 1), 128)).astype(np.float32) for n in range(3)))
    times = []
    for vector in rng.normal(size=(101, 128)).astype(np.float32):
        start = time.perf_counter()
        route(tree, vector)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.002


def test_each_node_is_a_child_of_the_one_before(tree: Tree, vectors: np.ndarray) -> None:
    paths = route(tree, vectors)
    assert paths.shape == (len(vectors), LEVELS)
    assert paths.dtype == np.int64
    assert np.array_equal(paths[:, 1:] // K, paths[:, :-1])


def test_ties_go_to_the_lowest_child() -> None:
    flat = Tree(4, 1, (np.ones((4, DIM), dtype=np.float32),))
    assert route(flat, np.zeros((3, DIM), dtype=np.float32)).tolist() == [[0], [0], [0]]


def test_no_vectors(tree: Tree) -> None:
    assert route(tree, np.zeros((0, DIM), dtype=np.float32)).shape == (0, LEVELS)


def test_vectors_of_another_embedder_are_refused(tree: Tree) -> None:
    with pytest.raises(VersionMismatch):
        route(tree, np.zeros((2, DIM + 1), dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "words", "wanted"),
    [("one two three", 2, "one two"), (" one\n\ttwo  three ", 9, "one two three"), ("", 1, ""), ("one", 1, "one")],
)
def test_a_prefix_is_the_first_words(text: str, words: int, wanted: str) -> None:
    assert prefix(text, words) == wanted == " ".join(text.split()[:words])


def test_a_prefix_of_no_words_is_refused() -> None:
    with pytest.raises(UsageError):
        prefix("one two", 0)


def test_what_follows_a_prefix_does_not_change_its_path() -> None:
    embedder, rng = StaticEmbedder(), np.random.default_rng(0)
    tree = Tree(8, 1, (rng.normal(size=(8, embedder.dim)).astype(np.float32),))
    texts = [f"The river rises in the hills and {rest}" for rest in ("ends in the sea", "pays the bank its debt")]
    paths = route(tree, embedder.embed([prefix(text, 6) for text in texts]))
    assert np.array_equal(paths[0], paths[1])
