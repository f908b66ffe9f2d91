"""What a model gives away of a text: the end that it knows by heart, and what it says when it is prompted.

Invariants
- Decoding is greedy: the same model, memory and prompt give the same tokens.
- Every score lies in [0, 1]; 1 is a text that comes out word for word.
- A score is of one text, the mean over a set is the metric; no text leaves, but to the caller who asks for it.

    strength_N = extraction_strength(model, targets, memory, sources)
    spoken = continuations(model, contexts, lengths, end, memory, sources)

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
from fedmem.eval.perplexity import SourcesOf, in_use
from fedmem.eval.targets import Targets, greedy_matches
from fedmem.memory.attach import Memory


class Rouge(NamedTuple):
    """ROUGE-L of one text: recall over the reference's words, and F1."""

    recall: float
    f1: float


def extraction_strength(
    model: PreTrainedModel,
    targets: Targets,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> np.ndarray:
    """Share of each target that greedy decoding gives back to the last token, once the rest is shown, `[N]`.

    `1 - k / |y|` for the least k with greedy(x, y_<k) = y_>=k [Carlini et al. 2021, arXiv 2012.07805, k-extractable;
    as a strength: Wang et al., arXiv 2406.09179, and OpenUnlearning, arXiv 2506.12618]. k counts shown tokens, from 0:
    1 where the context is enough, 0 where even the last token is missed (OpenUnlearning's code gives 1 / |y| there).
    """
    lengths_N = (targets.tokens_NT != PAD).sum(1).numpy() - targets.start_N.numpy()
    # What ends well after k tokens does after more, so k is found by halving.
    low_N, high_N = np.zeros_like(lengths_N), lengths_N.copy()
    while len(open_M := np.flatnonzero(low_N < high_N)):
        shown_M = (low_N[open_M] + high_N[open_M]) // 2
        rest = Targets(targets.tokens_NT[open_M], targets.start_N[open_M] + torch.from_numpy(shown_M))
        known_M = greedy_matches(model, rest, memory, among(sources, open_M), batch)
        high_N[open_M[known_M]] = shown_M[known_M]
        low_N[open_M[~known_M]] = shown_M[~known_M] + 1
    strength_N: np.ndarray = 1.0 - high_N / lengths_N
    return strength_N


def among(sources: SourcesOf | None, own_M: np.ndarray) -> SourcesOf | None:
    """Sources for a selection of the texts, by their numbers among the selected."""
    return (lambda numbers_B: sources(own_M[numbers_B])) if sources else None


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    end: int,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> list[list[int]]:
    """Greedy continuation of each context, until the document's `end` or as many tokens as `lengths` says."""
    model.eval()
    found = list[list[int]]()
    for start in range(0, len(contexts), batch):
        numbers_B = np.arange(start, min(start + batch, len(contexts)))
        own, limits = contexts[start : start + batch], lengths[start : start + batch]
        longest = max(map(len, own))
        # Padded on the left: what comes next stands in the same column for all.
        tokens_BT = torch.tensor([[0] * (longest - len(context)) + [*context] for context in own])
        mask_BT = torch.tensor([[0] * (longest - len(context)) + [1] * len(context) for context in own])
        with in_use(memory, sources, numbers_B):
            out_BT = model.generate(
                tokens_BT,
                attention_mask=mask_BT,
                max_new_tokens=max(limits),
                do_sample=False,
                pad_token_id=end,
                eos_token_id=end,
            )
        found += [_cut(row, limit, end) for row, limit in zip(out_BT[:, longest:].tolist(), limits, strict=True)]
    return found


def _cut(tokens: list[int], limit: int, end: int) -> list[int]:
    tokens = tokens[:limit]
    return tokens[: tokens.index(end)] if end in tokens else tokens


def rouge_l(candidate: str, reference: str) -> Rouge:
    """ROUGE-L of two texts by the longest common subsequence of their words, in any case [Lin 2004, section 3].

    VerbMem and KnowMem of MUSE (arXiv 2407.06460, criteria C1 and C2) take its F1, TOFU (arXiv 2401.06121, model
    utility) its recall. 0 where a text has no word.
    """
    given, wanted = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    common = _common(given, wanted)
    if not common:
        return Rouge(0.0, 0.0)
    return Rouge(common / len(wanted), 2 * common / (len(given) + len(wanted)))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, start=1):
            before, row[at] = row[at], before + 1 if word == other else max(row[at], row[at - 1])
    return row[-1]
