"""Compare losses by frequency: the gain of memory on rare documents and on common ones.

The frequency of a document is the number of training documents in its leaf cluster [docs/method.md, §5].

Invariants
- Pure functions of measured losses.
- A bucket's loss is its sum in nats divided by its tokens. Every sequence is in exactly one bucket; no row is empty.
- Arms are only compared on the same tokens.

>>> losses, tokens = np.array([6.0, 8.0]), np.array([2, 2])
>>> arms = {"anchor": (losses, tokens), "fetched": (losses / 2, tokens)}
>>> group_by_frequency(np.array([1, 9]), np.array([0, 1]), arms)[0]
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
    """Return the number of training documents in the leaf of each sequence.

    Args:
        training_leaf_D: leaf of each training document.
        leaf_N: leaf of each sequence.

    Returns:
        `[N]` int64.
    """
    leaves = max(training_leaf_D.max(initial=-1), leaf_N.max(initial=-1)) + 1
    frequency_N: np.ndarray = np.bincount(training_leaf_D, minlength=leaves)[leaf_N]
    return frequency_N


def group_by_frequency(
    frequency_N: np.ndarray, document_N: np.ndarray, arms: Mapping[str, Losses]
) -> list[dict[str, Any]]:
    """Return a row for each of at most four buckets of about equal size, rarest first.

    Args:
        frequency_N: frequency of each sequence.
        document_N: document of each sequence.
        arms: the losses of each arm by name; the first arm is the baseline.

    Returns:
        Rows with the bucket's frequencies (`bucket`), number of `documents`, loss of each arm in nats a token, and
        `gain`: the loss of the first arm minus that of the last.

    Raises:
        ValueError: the arms were not measured on the same tokens.
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
    """Yield label and members of each bucket. The edges are quantiles, so equal frequencies stay together."""
    edges = np.unique(np.quantile(frequency_N, np.linspace(0, 1, BUCKETS + 1)).round().astype(int)).tolist()
    for low, high in pairwise(edges if len(edges) > 1 else edges * 2):
        is_last = high == edges[-1]
        yield f"{low}–{high - (not is_last)}", (frequency_N >= low) & (frequency_N < high + is_last)
