"""Measure how much of a text a model reveals: the end that it knows by heart, and its continuation of a prompt.

Invariants
- Decoding is greedy: the same model, memory and prompt give the same tokens.
- Every score is in [0, 1]; 1 is a text that the model gives word for word.
- A score belongs to one text, and the metric is the mean over a set. Only `generate_continuations` returns text, to its
  caller.

    strength_N = extraction_strength(model, targets, memory, sources)
    tokens = generate_continuations(model, contexts, lengths, end, memory, sources)

>>> rouge_l("the cat sat", "the black cat sat down").f1
0.75

Shapes: N texts, B of a batch, T tokens.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from fedmem.anchor.tokenizer import PAD
from fedmem.eval.perplexity import SourcesOf, use_memory
from fedmem.eval.targets import Targets, greedy_matches
from fedmem.memory.attach import Memory


class Rouge(NamedTuple):
    """The ROUGE-L of one text.

    Attributes:
        recall: share of the reference's words in the longest common subsequence, 0 to 1.
        f1: harmonic mean of this recall and the precision over the candidate's words, 0 to 1.
    """

    recall: float
    f1: float


def extraction_strength(
    model: PreTrainedModel,
    targets: Targets,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> np.ndarray:
    """Return the extraction strength of each target: the share that greedy decoding completes after the rest.

    It is `1 - k / |y|` for the least k with greedy(x, y_<k) = y_>=k [Carlini et al. 2021, arXiv 2012.07805,
    k-extractable; as a strength: Wang et al., arXiv 2406.09179, and OpenUnlearning, arXiv 2506.12618]. k is the number
    of target tokens that the model is shown, from 0.

    Args:
        model: the anchor.
        targets: N targets y after their contexts x.
        memory: attached to the model; None for a model without memory.
        sources: gives the sources of a batch; None for the bare anchor.
        batch: texts in one forward pass.

    Returns:
        `[N]`: 1 if the context is enough, 0 if even the last token is wrong (OpenUnlearning's code gives 1 / |y| then).
    """
    lengths_N = (targets.tokens_NT != PAD).sum(1).numpy() - targets.start_N.numpy()
    # A target that is completed after k tokens is completed after more too, so k is found by halving.
    low_N, high_N = np.zeros_like(lengths_N), lengths_N.copy()
    while len(open_M := np.flatnonzero(low_N < high_N)):
        shown_M = (low_N[open_M] + high_N[open_M]) // 2
        rest = Targets(targets.tokens_NT[open_M], targets.start_N[open_M] + torch.from_numpy(shown_M))
        is_completed_M = greedy_matches(model, rest, memory, select_sources(sources, open_M), batch)
        high_N[open_M[is_completed_M]] = shown_M[is_completed_M]
        low_N[open_M[~is_completed_M]] = shown_M[~is_completed_M] + 1
    strength_N: np.ndarray = 1.0 - high_N / lengths_N
    return strength_N


def select_sources(sources: SourcesOf | None, selected_M: np.ndarray) -> SourcesOf | None:
    """Return `sources` for a selection of the texts: its numbers count the selected texts only.

    Args:
        sources: gives the sources of a batch by the numbers of its texts; None for the bare anchor.
        selected_M: numbers of the selected texts, in their new order.
    """
    return (lambda numbers_B: sources(selected_M[numbers_B])) if sources else None


@torch.no_grad()
def generate_continuations(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    end: int,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> list[list[int]]:
    """Return the greedy continuation of each context, without the end of the document.

    Args:
        model: the anchor.
        contexts: tokens of each context, at least one.
        lengths: the most tokens of each continuation.
        end: the token that ends a document, and a continuation.
        memory: attached to the model; None for a model without memory.
        sources: gives the sources of a batch; None for the bare anchor.
        batch: contexts in one call.

    Returns:
        The tokens of each continuation.
    """
    model.eval()
    tokens = list[list[int]]()
    for start in range(0, len(contexts), batch):
        numbers_B = np.arange(start, min(start + batch, len(contexts)))
        rows, limits = contexts[start : start + batch], lengths[start : start + batch]
        longest = max(map(len, rows))
        # Padded on the left: the next token is in the same column for all.
        tokens_BT = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rows])
        mask_BT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with use_memory(memory, sources, numbers_B):
            out_BT = model.generate(
                tokens_BT,
                attention_mask=mask_BT,
                max_new_tokens=max(limits),
                do_sample=False,
                pad_token_id=end,
                eos_token_id=end,
            )
        tokens += [_cut(row, limit, end) for row, limit in zip(out_BT[:, longest:].tolist(), limits, strict=True)]
    return tokens


def _cut(tokens: list[int], limit: int, end: int) -> list[int]:
    tokens = tokens[:limit]
    return tokens[: tokens.index(end)] if end in tokens else tokens


def rouge_l(candidate: str, reference: str) -> Rouge:
    """Return ROUGE-L by the longest common subsequence of words, ignoring case [Lin 2004, section 3].

    VerbMem and KnowMem of MUSE (arXiv 2407.06460, criteria C1 and C2) use its F1, and TOFU (arXiv 2401.06121, model
    utility) uses its recall.

    Args:
        candidate: the text of the model.
        reference: the true text.

    Returns:
        Recall and F1, each in [0, 1]; 0 if a text has no word.
    """
    words, reference_words = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    common = _common(words, reference_words)
    if not common:
        return Rouge(0.0, 0.0)
    return Rouge(common / len(reference_words), 2 * common / (len(words) + len(reference_words)))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]
