"""Balanced k-means and the tree that it makes."""

import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedmem.errors import UsageError, VerificationFailed
from fedmem.routing import kmeans
from fedmem.routing import tree as tree_module
from fedmem.routing.router import route
from fedmem.routing.tree import Tree, train_tree

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's types, on newer Pythons
    import faiss


def unit(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def in_memory(vectors: np.ndarray, branching: int, levels: int, seed: int) -> Tree:
    """The obvious way: every node's vectors by a mask over all of them."""
    nodes, centroids = np.zeros(len(vectors), dtype=np.int64), [np.zeros((1, vectors.shape[1]), np.float32)]
    for level in range(levels):
        rngs = [np.random.default_rng([seed, level, node]) for node in range(branching**level)]
        children = [
            kmeans.balanced_kmeans(vectors[nodes == node], branching, rng, centroids[-1][node])
            for node, rng in enumerate(rngs)
        ]
        centroids.append(np.concatenate(children))
        nodes = route(Tree(branching, level + 1, tuple(centroids[1:])), vectors)[:, -1]
    return Tree(branching, levels, tuple(centroids[1:]))


def objective(points: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid."""
    return float(((points[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2).min(axis=1).mean())


def lloyd(points: np.ndarray, centroids: np.ndarray, steps: int) -> np.ndarray:
    """Plain k-means, every step on all points."""
    for _ in range(steps):
        owner = ((points[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2).argmin(axis=1)
        centroids = np.stack([points[owner == c].mean(axis=0) for c in range(len(centroids))])
    return centroids


def test_streaming_gives_the_tree_of_the_array_in_memory() -> None:
    vectors = unit(9000, dim=8)  # the root has more than one step takes
    wanted = in_memory(vectors, 4, 3, seed=11).digest

    def halves() -> Iterator[np.ndarray]:
        yield from (vectors[:4321], vectors[4321:])

    def crumbs() -> Iterator[np.ndarray]:
        yield from np.array_split(vectors, 700)

    found = {train_tree(source, branching=4, levels=3, seed=11).digest for source in (vectors, halves, crumbs)}
    assert found == {wanted}


def test_what_is_held_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "NODE_POINTS", 400)
    vectors, digests = unit(3000, dim=8), set()
    for held in (400, 777, 10_000):
        monkeypatch.setattr(tree_module, "HELD", held)
        digests.add(train_tree(vectors, branching=4, levels=3, seed=5).digest)
    assert len(digests) == 1
    assert digests != {in_memory(vectors, 4, 3, seed=5).digest}  # or nothing was left out


def test_a_tree_is_trained_without_holding_all_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    count, dim, held, chunk = 40_000, 64, 20_000, 200
    monkeypatch.setattr(tree_module, "HELD", held)
    monkeypatch.setattr(kmeans, "NODE_POINTS", held)
    monkeypatch.setattr(kmeans, "STEP_POINTS", 300)

    def generated() -> Iterator[np.ndarray]:
        yield from (unit(chunk, dim, seed=start) for start in range(0, count, chunk))

    train_tree(unit(50), branching=4, levels=2, seed=0)  # what is loaded once is no part of it
    tracemalloc.start()
    try:
        train_tree(generated, branching=4, levels=3, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one_step = 10 * 300 * dim * 8  # chunks and distances, some of them float64
    assert held * dim * 4 < peak < held * dim * 4 + 30 * count + one_step


def test_drawn_points_make_a_level_nearly_as_good_as_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    points = (unit(8, seed=9)[rng.integers(0, 8, 6000)] + rng.normal(0, 0.2, (6000, 16))).astype(np.float32)
    best = min(objective(points, lloyd(points, points[rng.choice(6000, 8, replace=False)], 20)) for _ in range(5))
    monkeypatch.setattr(kmeans, "STEP_POINTS", 300)
    monkeypatch.setattr(kmeans, "NODE_POINTS", 2000)
    found = objective(points, train_tree(points, branching=8, levels=1, seed=2).centroids[0])
    assert best * 0.99 < found < best * 1.1
    assert found < 0.9 * objective(points, points[:8])


def test_same_seed_same_tree_and_another_seed_another() -> None:
    vectors = unit(600)
    first, again, other = (train_tree(vectors, branching=4, levels=2, seed=seed) for seed in (7, 7, 8))
    assert first.digest == again.digest != other.digest
    assert [c.shape for c in first.centroids] == [(4, 16), (16, 16)]


def test_faiss_threads_change_nothing_and_are_put_back() -> None:
    vectors, before = unit(3000), faiss.omp_get_max_threads()
    digests = set()
    try:
        for threads in (1, 2, 4):
            faiss.omp_set_num_threads(threads)
            digests.add(train_tree(vectors, branching=8, levels=1, seed=1).digest)
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert len(digests) == 1
    assert faiss.cvar.distance_compute_blas_threshold < kmeans._NO_BLAS


def test_planted_clusters_are_found() -> None:
    centres = np.eye(4, 16, dtype=np.float32)
    points = np.repeat(centres, 50, axis=0) + np.random.default_rng(0).normal(0, 0.02, (200, 16)).astype(np.float32)
    paths = route(train_tree(points, branching=4, levels=1, seed=3), points)[:, 0].reshape(4, 50)
    assert sorted(len(set(row.tolist())) for row in paths) == [1, 1, 1, 1]
    assert len({int(row[0]) for row in paths}) == 4


def test_balance_spreads_what_plain_kmeans_would_not() -> None:
    lump = np.concatenate([unit(950, seed=1) * 0.05, unit(50, seed=2)]).astype(np.float32)
    paths = route(train_tree(lump, branching=4, levels=1, seed=0), lump)[:, 0]
    assert np.bincount(paths, minlength=4).max() < 0.6 * len(lump)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_fewer_points_than_children(n: int) -> None:
    vectors = unit(n)
    tree = train_tree(vectors, branching=8, levels=3, seed=0)
    paths = route(tree, vectors)
    assert len(np.unique(paths[:, 0])) == n
    assert paths[:, 0].max() < n  # a spare child repeats the first, and a tie goes to the lower index


def test_equal_points() -> None:
    tree = train_tree(np.repeat(unit(1), 100, axis=0), branching=4, levels=2, seed=0)
    assert np.isfinite(tree.centroids[1]).all()


@pytest.mark.parametrize(
    ("vectors", "branching", "levels"),
    [(np.empty((0, 4)), 2, 1), (np.full((3, 4), np.nan), 2, 1), (np.full((3, 4), np.inf), 2, 1), (unit(9), 1, 1),
     (unit(9), 2, 0), (np.zeros(4), 2, 1)],
)  # fmt: skip
def test_what_no_tree_can_be_made_of(vectors: np.ndarray, branching: int, levels: int) -> None:
    with pytest.raises(UsageError):
        train_tree(vectors, branching=branching, levels=levels, seed=0)


def test_a_stream_that_cannot_be_read_twice_makes_no_tree() -> None:
    once = iter([unit(9)])
    with pytest.raises(UsageError):
        train_tree(lambda: once, branching=2, levels=1, seed=0)


def test_save_and_load(tmp_path: Path) -> None:
    tree = train_tree(unit(200), branching=4, levels=2, seed=7)
    tree.save(tmp_path / "tree.safetensors")
    again = Tree.load(tmp_path / "tree.safetensors")
    assert (again.digest, again.branching, again.levels) == (tree.digest, 4, 2)


def test_a_broken_file_is_no_tree(tmp_path: Path) -> None:
    path = tmp_path / "tree.safetensors"
    train_tree(unit(50), branching=2, levels=2, seed=7).save(path)
    whole = path.read_bytes()
    for data in (b"", whole[:-9], b"x" * 50):
        path.write_bytes(data)
        with pytest.raises(VerificationFailed):
            Tree.load(path)


@pytest.mark.parametrize(
    "centroids",
    [(), (np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32)), (np.full((2, 4), np.nan, np.float32),),
     (np.zeros((2, 4), np.float64),), (np.zeros((2, 4), np.float32), np.zeros((4, 5), np.float32))],
)  # fmt: skip
def test_shapes_are_checked(centroids: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(VerificationFailed):
        Tree(2, len(centroids), centroids)
