"""Compute the children of one node of the cluster tree by balanced k-means on faiss.

Invariants
- The result is a function of (points, k, generator). Distances are computed pair by pair and never with a BLAS, whose
  sums depend on the number of threads. One thread is used, since these searches are small.
- After balancing no cluster has more than 1.5/k of the points, unless there are too few points to divide.
- Clusters are balanced in training only. At use the plain nearest centroid is taken [docs/method.md, §3].
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
from numpy.typing import NDArray

EM_STEPS, STEP_POINTS, CAP = 20, 6400, 1.5
NODE_POINTS = (
    EM_STEPS + 1
) * STEP_POINTS  # the most that one node can use: the start and every step take different points
_NO_BLAS = 2**30
_faiss_settings = threading.Lock()


def balanced_kmeans(
    points_ND: NDArray[np.float32], k: int, rng: np.random.Generator, parent_D: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return k centroids of the points: k-means++, then EM steps on new examples with balanced assignment.

    Args:
        points_ND: the points, finite.
        k: number of centroids.
        rng: decides every draw.
        parent_D: the centroid of the parent node.

    Returns:
        `[k, D]` float32. With at most k distinct points: these points, then repeats of the first. Without points: k
        times `parent_D`.
    """
    distinct = np.unique(points_ND, axis=0) if len(points_ND) <= 4 * k else points_ND
    if len(distinct) <= k:
        filled = distinct if len(distinct) else parent_D[None, :]
        return np.concatenate([filled, np.repeat(filled[:1], k - len(filled), axis=0)]).astype(np.float32)
    batches = _batches(points_ND, rng)
    with _pairwise_faiss():
        centroids = _plus_plus(next(batches), k, rng)
        for batch in batches:
            owner = _balance(_nearest(batch, centroids), k, rng)
            centroids = _means(batch, owner, centroids)
    return centroids


def _batches(points_ND: NDArray[np.float32], rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Yield `STEP_POINTS` examples for the start and for each step. None is repeated before all were used.

    Yield all points each time if one step can take them all.
    """
    shuffled = rng.permutation(len(points_ND)) if len(points_ND) > STEP_POINTS else None
    for step in range(EM_STEPS + 1):
        if shuffled is None:
            yield points_ND
        else:
            turn = np.arange(step * STEP_POINTS, (step + 1) * STEP_POINTS) % len(shuffled)
            yield points_ND[np.sort(shuffled[turn])]


def _plus_plus(points_ND: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw k centres by k-means++: a point's probability is proportional to its squared distance to the nearest."""
    centres = [points_ND[rng.integers(len(points_ND))]]
    gap_N = np.full(len(points_ND), np.inf)
    for _ in range(k - 1):
        gap_N = np.minimum(gap_N, ((points_ND - centres[-1]).astype(np.float64) ** 2).sum(axis=1))
        total = gap_N.sum()
        drawn = rng.choice(len(points_ND), p=gap_N / total) if total > 0 else rng.integers(len(points_ND))
        centres.append(points_ND[drawn])
    return np.stack(centres)


def _nearest(points_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32]) -> NDArray[np.int64]:
    index = faiss.IndexFlatL2(centroids_KD.shape[1])
    index.add(np.ascontiguousarray(centroids_KD))
    _, owner = index.search(np.ascontiguousarray(points_ND), 1)
    return np.asarray(owner[:, 0], dtype=np.int64)


def _balance(owner_N: NDArray[np.int64], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Divide the points of the largest and smallest cluster evenly at random, until no cluster exceeds the cap."""
    sizes = np.bincount(owner_N, minlength=k)
    while sizes.max() > CAP * len(owner_N) / k and sizes.max() - sizes.min() > 1:
        large, small = int(sizes.argmax()), int(sizes.argmin())
        pooled = rng.permutation(np.flatnonzero((owner_N == large) | (owner_N == small)))
        owner_N[pooled] = np.where(np.arange(len(pooled)) % 2, small, large)
        sizes = np.bincount(owner_N, minlength=k)
    return owner_N


def _means(
    points_ND: NDArray[np.float32], owner_N: NDArray[np.int64], before_KD: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the mean of each cluster, summed in float64. A cluster without points keeps its centroid."""
    sums = np.stack([points_ND[owner_N == c].sum(axis=0, dtype=np.float64) for c in range(len(before_KD))])
    sizes = np.bincount(owner_N, minlength=len(before_KD))[:, None]
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), before_KD).astype(np.float32)


@contextmanager
def _pairwise_faiss() -> Iterator[None]:
    """Let faiss compute distances pair by pair inside the `with`. Its settings are global, so a lock is held."""
    with _faiss_settings:
        before = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
        faiss.cvar.distance_compute_blas_threshold = _NO_BLAS
        faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = before[0]
            faiss.omp_set_num_threads(before[1])
