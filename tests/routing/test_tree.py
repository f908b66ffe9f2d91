"""Balanced k-means and the tree that it makes."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.errors import UsageError, VerificationFailed
from fedmem.routing import kmeans
from fedmem.routing.router import route
from fedmem.routing.tree import Tree, train_tree

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's types, on newer Pythons
    import faiss


def unit(n: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


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


def test_faiss_assignment_equals_brute_force() -> None:
    points, centroids = unit(500), unit(8, seed=1)
    gaps = ((points[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
    assert np.array_equal(kmeans._nearest(points, centroids), gaps.argmin(axis=1))


def test_planted_clusters_are_found() -> None:
    centres = np.eye(4, 16, dtype=np.float32)
    points = np.repeat(centres, 50, axis=0) + np.random.default_rng(0).normal(0, 0.02, (200, 16)).astype(np.float32)
    paths = route(train_tree(points, branching=4, levels=1, seed=3), points)[:, 0].reshape(4, 50)
    assert sorted(len(set(row.tolist())) for row in paths) == [1, 1, 1, 1]
    assert len({int(row[0]) for row in paths}) == 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(0, 9))
def test_no_cluster_is_left_above_the_cap(owners: list[int], seed: int) -> None:
    balanced = kmeans._balance(np.array(owners), 5, np.random.default_rng(seed))
    sizes = np.bincount(balanced, minlength=5)
    assert sizes.sum() == len(owners)
    assert sizes.max() <= 1.5 * len(owners) / 5 or sizes.max() - sizes.min() <= 1


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
