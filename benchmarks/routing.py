"""Routing one query, and training a tree of 4,096 leaves on vectors that are never held together.

The vectors are made anew from their seed at every pass: unit rows of 128 columns around 5,000 centres. Memory is the
growth of the process's peak while the tree is trained, and is held against what the docstring of `train_tree` allows.

    python -m benchmarks.routing --json
    python -m benchmarks.routing --quick
"""

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import faiss  # noqa: F401  loaded before memory is measured
import numpy as np
from numpy.typing import NDArray

from benchmarks import harness
from fedmem.routing.embedder import StaticEmbedder
from fedmem.routing.router import route
from fedmem.routing.tree import HELD, Tree, train_tree

BRANCHING, LEVELS, DIM, CENTRES, CHUNK, SEED = 16, 3, 128, 5_000, 10_000, 7
VECTORS, QUICK_VECTORS, QUERIES = 1_000_000, 100_000, 2_000
LIMIT_MS = 2.0
BOOKKEEPING, SLACK = 30, 48 * 2**20  # bytes a vector; pieces, centroids and what the allocator keeps


def generated(count: int) -> Iterator[NDArray[np.float32]]:
    """Yield the same `count` unit rows at every call, in chunks."""
    centres_CD = np.random.default_rng(SEED).standard_normal((CENTRES, DIM), dtype=np.float32)
    for start in range(0, count, CHUNK):
        rng = np.random.default_rng([SEED, start])
        rows_ND = rng.standard_normal((min(CHUNK, count - start), DIM), dtype=np.float32)
        rows_ND += centres_CD[rng.integers(0, CENTRES, len(rows_ND))]
        yield rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)


def peak_bytes() -> int:
    """Return the greatest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(count: int) -> tuple[Tree, dict[str, Any]]:
    """Return a tree of 4,096 leaves, its seconds, and the memory that it took."""
    passes = 0

    def chunks() -> Iterator[NDArray[np.float32]]:
        nonlocal passes
        passes += 1
        yield from generated(count)

    before, start = peak_bytes(), time.perf_counter()
    tree = train_tree(chunks, branching=BRANCHING, levels=LEVELS, seed=SEED)
    seconds, grown, whole = time.perf_counter() - start, peak_bytes() - before, count * DIM * 4
    allowed = min(HELD, count) * DIM * 4 + BOOKKEEPING * count + SLACK
    return tree, {
        "vectors": count,
        "leaves": len(np.unique(tree.centroids[-1], axis=0)),
        "train_seconds": seconds,
        "passes": passes,
        "all_vectors_bytes": whole,
        "peak_growth_bytes": grown,
        "peak_growth_allowed_bytes": allowed,
        "peak_growth_share": grown / whole,
        "digest": tree.digest,
    }


def single_query(tree: Tree) -> dict[str, Any]:
    """Return milliseconds to route one vector, and to embed one text: means, and the middle 95 % of the queries."""
    embedder, text = StaticEmbedder(), "Where does the river rise that flows past the old town?"
    vectors_ND = next(generated(QUERIES))
    route(tree, vectors_ND[0]), embedder.embed([text])
    routed = [_milliseconds(lambda vector=vector: route(tree, vector)) for vector in vectors_ND]
    embedded = [_milliseconds(lambda: embedder.embed([text])) for _ in vectors_ND]
    times = {"route_ms": routed, "embed_ms": embedded}
    return {
        "queries": QUERIES,
        **{name: float(np.mean(found)) for name, found in times.items()},
        "interval": {name: np.quantile(found, [0.025, 0.975]).tolist() for name, found in times.items()},
        "batch_equals_single": bool(
            np.array_equal(route(tree, vectors_ND), np.concatenate([route(tree, vector) for vector in vectors_ND]))
        ),
    }


def _milliseconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def main() -> None:
    options = harness.options(__doc__ or "").parse_args()
    tree, trained = train(QUICK_VECTORS if options.quick else VECTORS)
    queried = single_query(tree)
    checks = {
        "route_within_limit": queried["route_ms"] <= LIMIT_MS,
        "memory_within_bound": trained["peak_growth_bytes"] <= trained["peak_growth_allowed_bytes"],
        "batch_equals_single": queried.pop("batch_equals_single"),
        "all_leaves_differ": trained["leaves"] == BRANCHING**LEVELS,
    }
    data = {**trained, **queried, "checks": checks}
    harness.emit("routing", data | {"machine": harness.machine()}, options)
    if not all(checks.values()):
        raise SystemExit(12)


if __name__ == "__main__":
    main()
