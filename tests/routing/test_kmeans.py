"""The steps of balanced k-means, each against the slow obvious way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmem.routing import kmeans
from tests.routing.test_tree import unit


def test_a_step_takes_new_examples_until_all_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "STEP_POINTS", 10)
    points = np.arange(35, dtype=np.float32)[:, None]
    batches = list(kmeans._batches(points, np.random.default_rng(0)))
    assert [len(set(batch[:, 0])) for batch in batches] == [10] * (kmeans.EM_STEPS + 1)
    assert len(set(np.concatenate(batches[:3])[:, 0])) == 30
    assert set(np.concatenate(batches[:4])[:, 0]) == set(range(35))
    assert all(len(batch) == 9 for batch in kmeans._batches(points[:9], np.random.default_rng(0)))


def test_means_are_those_of_each_cluster_and_an_empty_one_stays() -> None:
    points, owner = unit(200), np.random.default_rng(0).integers(0, 4, 200)
    found = kmeans._means(points, owner, np.full((5, 16), 7, dtype=np.float32))
    for cluster in range(4):
        np.testing.assert_allclose(found[cluster], points[owner == cluster].mean(axis=0), atol=1e-6)
    assert (found[4] == 7).all()


def test_faiss_assignment_equals_brute_force() -> None:
    points, centroids = unit(500), unit(8, seed=1)
    gaps = ((points[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
    assert np.array_equal(kmeans._nearest(points, centroids), gaps.argmin(axis=1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(0, 9))
def test_no_cluster_is_left_above_the_cap(owners: list[int], seed: int) -> None:
    balanced = kmeans._balance(np.array(owners), 5, np.random.default_rng(seed))
    sizes = np.bincount(balanced, minlength=5)
    assert sizes.sum() == len(owners)
    assert sizes.max() <= 1.5 * len(owners) / 5 or sizes.max() - sizes.min() <= 1
