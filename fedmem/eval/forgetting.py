"""Measure how much a co-trained anchor retains of a subtree's documents after the subtree's blocks are removed.

Co-training changes the anchor too, so both anchor and block may have learned the documents. Three arms are compared: an
anchor that never saw the subtree's documents (`never`), the co-trained anchor with its memory (`whole`), and the
co-trained anchor with other memory, or none, in place of the subtree (`removed`).

Invariants
- The retained share of a score is `(removed - never) / (whole - never)`. It is 1 if the removal changes nothing, and 0
  if the score is that of an anchor that never saw the text. Below 0 the score is worse.
- The share is None if `whole` is not better than `never`: what was not learned cannot be retained.
- Documents outside the subtree are measured too, in the same batches. If their fetches did not change, the retained
  share is exactly 1, to the last bit.

    inside_N = paths_NP[:, 0] == 3
    measure_removal(never, model, memory, tokens_NT, inside_N, fetched, instead=lambda _: [generic], others=fetched)

>>> retained_share(never=0.25, whole=0.75, removed=0.5)
0.5

Shapes: N sequences or probes, T tokens.
"""

from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.errors import UsageError
from fedmem.eval.buckets import Losses
from fedmem.eval.perplexity import SourcesOf, mean_loss, sequence_losses
from fedmem.memory.attach import Memory

Arms = dict[str, Losses]
"""Sums and counts of the arms `never`, `whole` and `removed`: nats and tokens, or correct answers and ones."""


def retained_share(never: float, whole: float, removed: float) -> float | None:
    """Return the share of the gain that remains after the removal, or None without a gain.

    Args:
        never: score of the anchor that never saw the text; more is better, so a loss needs a minus.
        whole: score with all memory.
        removed: score after the removal.
    """
    return (removed - never) / (whole - never) if whole > never else None


def retained_losses(arms: Arms, inside_N: np.ndarray) -> dict[str, Any]:
    """Return the loss of each arm and the retained share, inside and outside the subtree.

    Args:
        arms: losses of `never`, `whole` and `removed`.
        inside_N: True for sequences inside the subtree.

    Returns:
        For `inside` and `outside`: the loss of each arm in nats a token, and `retained`.

    Raises:
        UsageError: one side has no sequence.
    """
    return _sides(arms, inside_N, sign=-1)


def retained_facts(exact: dict[str, np.ndarray], inside_N: np.ndarray) -> dict[str, Any]:
    """Return what `retained_losses` does, for the share of facts that each arm answered exactly.

    Args:
        exact: for each arm `[N]`, True for probes that were answered exactly.
        inside_N: True for probes inside the subtree.

    Raises:
        UsageError: one side has no probe.
    """
    arms = {name: (exact_N.astype(np.float64), np.ones(len(exact_N), np.int64)) for name, exact_N in exact.items()}
    return _sides(arms, inside_N, sign=1)


def measure_removal(
    never: PreTrainedModel,
    model: PreTrainedModel,
    memory: Memory,
    tokens_NT: Tensor,
    inside_N: np.ndarray,
    fetched: SourcesOf,
    instead: SourcesOf,
    others: SourcesOf,
) -> dict[str, Any]:
    """Measure the losses of the three arms, and the retained shares.

    Args:
        never: the anchor that never saw the subtree's documents.
        model: the co-trained anchor.
        memory: attached to `model`.
        tokens_NT: the sequences, padded with PAD.
        inside_N: True for sequences inside the subtree.
        fetched: sources before the removal.
        instead: sources of inside sequences after the removal: generic blocks, or none.
        others: sources of outside sequences after the removal, from the bank without the subtree.

    Returns:
        As `retained_losses`.

    Raises:
        UsageError: one side has no sequence.
    """
    arms = {
        "never": sequence_losses(never, tokens_NT),
        "whole": losses_by_side(model, memory, tokens_NT, inside_N, fetched, fetched),
        "removed": losses_by_side(model, memory, tokens_NT, inside_N, instead, others),
    }
    return retained_losses(arms, inside_N)


def losses_by_side(
    model: PreTrainedModel,
    memory: Memory,
    tokens_NT: Tensor,
    inside_N: np.ndarray,
    inside: SourcesOf,
    outside: SourcesOf,
) -> Losses:
    """Return the losses of all sequences: inside ones with the sources `inside`, the others with `outside`.

    This also measures blocked paths: with generic blocks inside and fetched ones outside.

    Args:
        model: the anchor.
        memory: attached to `model`.
        tokens_NT: the sequences, padded with PAD.
        inside_N: True for sequences that use `inside`.
        inside: sources by sequence number.
        outside: sources by sequence number.
    """
    losses_N, counts_N = np.zeros(len(inside_N)), np.zeros(len(inside_N), dtype=np.int64)

    def measure(side_M: np.ndarray, sources: SourcesOf) -> None:
        side_sources: SourcesOf = lambda numbers_B: sources(side_M[numbers_B])  # noqa: E731
        losses_N[side_M], counts_N[side_M] = sequence_losses(model, tokens_NT[side_M], memory, side_sources)

    measure(np.flatnonzero(inside_N), inside)
    measure(np.flatnonzero(~inside_N), outside)
    return losses_N, counts_N


def _sides(arms: Arms, inside_N: np.ndarray, sign: int) -> dict[str, Any]:
    """Return the mean of each arm and the retained share on each side; `sign` is -1 if less is better."""
    if inside_N.all() or not inside_N.any():
        raise UsageError("Measure texts inside the removed subtree and texts outside it: one side has none.")
    rows = dict[str, Any]()
    for side, side_N in (("inside", inside_N), ("outside", ~inside_N)):
        means = {name: mean_loss((sums_N[side_N], counts_N[side_N])) for name, (sums_N, counts_N) in arms.items()}
        rows[side] = means | {"retained": retained_share(**{name: sign * value for name, value in means.items()})}
    return rows
