"""Loss by frequency: what memory gains on rare documents, and what on common ones.

Frequency of a document is the number of training documents in its leaf cluster [docs/method.md, §5].

Invariants
- Pure: measured losses in, rows of a table out.
- A bucket's loss is its summed nats by its tokens; every sequence lies in exactly one bucket, and no row is empty.
- Arms are compared on the same tokens or not at all.

>>> losses, tokens = np.array([6.0, 8.0]), np.array([2, 2])
>>> by_frequency(np.array([1, 9]), np.array([0, 1]), {"anchor": (losses, tokens), "fetched": (losses / 2, tokens)})[0]
{'bucket': '1–2', 'documents': 1, 'anchor': 3.0, 'fetched': 1.5, 'gain': 1.5}

Shapes: N sequences, D training documents.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

BUCKETS = 4
Losses = tuple[np.ndarray, np.ndarray]
"""Summed loss in nats and number of predicted tokens of each sequence, as `sequence_losses` returns them."""


def leaf_frequency(training_leaf_D: np.ndarray, leaf_N: np.ndarray) -> np.ndarray:
    """Number of training documents in the leaf of each sequence, `[N]`."""
    leaves = max(training_leaf_D.max(initial=-1), leaf_N.max(initial=-1)) + 1
    frequency_N: np.ndarray = np.bincount(training_leaf_D, minlength=leaves)[leaf_N]
    return frequency_N


def by_frequency(frequency_N: np.ndarray, document_N: np.ndarray, arms: Mapping[str, Losses]) -> list[dict[str, Any]]:
    """A row for each of at most four buckets of about equal size, rarest first.

    Columns: the bucket's frequencies, documents, loss of each arm in nats a token, and `gain`, that of the first arm
    less that of the last. Raises ValueError where the arms were not measured on the same tokens.
    """
    tokens_N = next(iter(arms.values()))[1]
    if any(not np.array_equal(counts_N, tokens_N) for _, counts_N in arms.values()):
        raise ValueError("arms of one table must be measured on the same tokens")
    rows = list[dict[str, Any]]()
    for label, inside_N in _buckets(frequency_N):
        if not (tokens := tokens_N[inside_N].sum()):  # rounded edges of few documents can leave a bucket empty
            continue
        losses = {name: float(loss_N[inside_N].sum() / tokens) for name, (loss_N, _) in arms.items()}
        in_order, documents = list(losses.values()), len(np.unique(document_N[inside_N]))
        rows.append({"bucket": label, "documents": documents, **losses, "gain": in_order[0] - in_order[-1]})
    return rows


def _buckets(frequency_N: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Label and members of each bucket. Edges are quantiles, so equal frequencies stay together."""
    edges = np.unique(np.quantile(frequency_N, np.linspace(0, 1, BUCKETS + 1)).round().astype(int)).tolist()
    for low, high in pairwise(edges if len(edges) > 1 else edges * 2):
        last = high == edges[-1]
        yield f"{low}–{high - (not last)}", (frequency_N >= low) & (frequency_N < high + last)
