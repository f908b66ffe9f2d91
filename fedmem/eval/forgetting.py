"""What a co-trained anchor keeps of its tail after a subtree's blocks are removed.

Co-training moves the anchor too, so what a block was trained on may have gone into both. Three arms tell: an anchor
that never saw the subtree's documents (`never`), the co-trained one with its memory (`whole`), and the same one with
other memory, or none, in the subtree's place (`removed`).

Invariants
- Retained is `(removed - never) / (whole - never)` of a score: 1 where removal takes nothing away, 0 where it leaves
  what an anchor has that never saw the text. Below 0 it is worse than that one.
- Nothing was learned, nothing can be retained: without a gain of `whole` over `never` the share is None.
- Documents outside the subtree are measured too, in the same batches: where they fetch what they fetched before, all
  of it is retained, to the last bit.

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
from fedmem.eval.perplexity import SourcesOf, mean, sequence_losses
from fedmem.memory.attach import Memory

Arms = dict[str, Losses]
"""Sums and counts of `never`, `whole` and `removed`: nats and tokens, or right answers and ones."""


def retained_share(never: float, whole: float, removed: float) -> float | None:
    """Share of a gain that outlives removal, of scores where more is better: an accuracy, or a loss with a minus."""
    return (removed - never) / (whole - never) if whole > never else None


def retained_losses(arms: Arms, inside_N: np.ndarray) -> dict[str, Any]:
    """`inside` the subtree and `outside`: loss of each arm in nats a token, and the share `retained`.

    Raises UsageError where one side is empty.
    """
    return _sides(arms, inside_N, sign=-1)


def retained_facts(exact: dict[str, np.ndarray], inside_N: np.ndarray) -> dict[str, Any]:
    """As `retained_losses`, of the share of facts answered exactly (`[N]` bool of each arm)."""
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
    """Measure the three arms, and what is retained of loss.

    `fetched` gives the memory before the removal. After it a sequence inside the subtree gets `instead` (generic
    blocks, or no source at all), one outside it `others`: what the bank gives without the subtree.
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
    """Losses of all sequences, those inside with the sources of `inside`, the rest with those of `outside`.

    It also measures paths of which some are blocked: generic blocks inside, fetched ones outside.
    """
    losses_N, counts_N = np.zeros(len(inside_N)), np.zeros(len(inside_N), dtype=np.int64)

    def measure(own_M: np.ndarray, sources: SourcesOf) -> None:
        own_sources: SourcesOf = lambda numbers_B: sources(own_M[numbers_B])  # noqa: E731
        losses_N[own_M], counts_N[own_M] = sequence_losses(model, tokens_NT[own_M], memory, own_sources)

    measure(np.flatnonzero(inside_N), inside)
    measure(np.flatnonzero(~inside_N), outside)
    return losses_N, counts_N


def _sides(arms: Arms, inside_N: np.ndarray, sign: int) -> dict[str, Any]:
    """Mean of each arm on either side, and the share retained; `sign` is -1 where less is better."""
    if inside_N.all() or not inside_N.any():
        raise UsageError("Measure texts inside the removed subtree and texts outside it: one side has none.")
    rows = dict[str, Any]()
    for side, own_N in (("inside", inside_N), ("outside", ~inside_N)):
        means = {name: mean((sums_N[own_N], counts_N[own_N])) for name, (sums_N, counts_N) in arms.items()}
        rows[side] = means | {"retained": retained_share(**{name: sign * value for name, value in means.items()})}
    return rows
