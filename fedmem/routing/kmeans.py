"""One node of the cluster tree: balanced k-means on faiss.

Invariants
- The result is a function of (points, k, generator): faiss threads do not change it, because distances are computed
  pair by pair and never through a BLAS, whose sums depend on the thread count. One thread: these searches are tiny.
- After balancing no cluster holds more than 1.5/k of the points, unless there are too few points to share out.
- Balance is for training only: at use the plain nearest centroid wins [docs/method.md, §3].
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np
from numpy.typing import NDArray

EM_STEPS, STEP_POINTS, CAP = 20, 6400, 1.5
NODE_POINTS = (EM_STEPS + 1) * STEP_POINTS  # what one node can use: the start, then every step, on points of its own
_NO_BLAS = 2**30
_faiss_settings = threading.Lock()


def balanced_kmeans(
    points_ND: NDArray[np.float32], k: int, rng: np.random.Generator, parent_D: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Centroids [k, D] of `points_ND`: k-means++, then EM steps on new examples with balanced assignment.

    Fewer distinct points than k: the distinct points, then repeats of the first. No points: k times `parent_D`.
    """
    distinct = np.unique(points_ND, axis=0) if len(points_ND) <= 4 * k else points_ND
    if len(distinct) <= k:
        found = distinct if len(distinct) else parent_D[None, :]
        return np.concatenate([found, np.repeat(found[:1], k - len(found), axis=0)]).astype(np.float32)
    batches = _batches(points_ND, rng)
    with _pairwise_faiss():
        centroids = _plus_plus(next(batches), k, rng)
        for batch in batches:
            owner = _balance(_nearest(batch, centroids), k, rng)
            centroids = _means(batch, owner, centroids)
    return centroids


def _batches(points_ND: NDArray[np.float32], rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """`STEP_POINTS` examples for the start and for each step, none twice before every one was used.

    All of them each time where there are no more than one step takes.
    """
    shuffled = rng.permutation(len(points_ND)) if len(points_ND) > STEP_POINTS else None
    for step in range(EM_STEPS + 1):
        if shuffled is None:
            yield points_ND
        else:
            turn = np.arange(step * STEP_POINTS, (step + 1) * STEP_POINTS) % len(shuffled)
            yield points_ND[np.sort(shuffled[turn])]


def _plus_plus(points_ND: NDArray[np.float32], k: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """k-means++: each next centre is drawn with probability proportional to the squared distance to the nearest one."""
    chosen = [points_ND[rng.integers(len(points_ND))]]
    gap_N = np.full(len(points_ND), np.inf)
    for _ in range(k - 1):
        gap_N = np.minimum(gap_N, ((points_ND - chosen[-1]).astype(np.float64) ** 2).sum(axis=1))
        total = gap_N.sum()
        drawn = rng.choice(len(points_ND), p=gap_N / total) if total > 0 else rng.integers(len(points_ND))
        chosen.append(points_ND[drawn])
    return np.stack(chosen)


def _nearest(points_ND: NDArray[np.float32], centroids_KD: NDArray[np.float32]) -> NDArray[np.int64]:
    index = faiss.IndexFlatL2(centroids_KD.shape[1])
    index.add(np.ascontiguousarray(centroids_KD))
    _, owner = index.search(np.ascontiguousarray(points_ND), 1)
    return np.asarray(owner[:, 0], dtype=np.int64)


def _balance(owner_N: NDArray[np.int64], k: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Share the largest cluster's points evenly, at random, with the smallest one, while it holds more than the cap."""
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
    """Mean of each cluster, in float64; a cluster without points stays where it was."""
    sums = np.stack([points_ND[owner_N == c].sum(axis=0, dtype=np.float64) for c in range(len(before_KD))])
    sizes = np.bincount(owner_N, minlength=len(before_KD))[:, None]
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), before_KD).astype(np.float32)


@contextmanager
def _pairwise_faiss() -> Iterator[None]:
    """Distances pair by pair for the duration; the settings are global to faiss, so one training at a time."""
    with _faiss_settings:
        before = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
        faiss.cvar.distance_compute_blas_threshold = _NO_BLAS
        faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = before[0]
            faiss.omp_set_num_threads(before[1])
