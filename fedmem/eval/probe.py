"""What a model answers to long-tail facts: exact match, and the answer's place among others of its relation.

Invariants
- Exact match is greedy decoding of as many tokens as the answer has [docs/method.md, §5].
- Candidates compete with the full stop after them, else ` 1` would always beat ` 12`; a tie counts as lost.
- Memory is fetched by the prompt alone: `sources` gets the numbers of the probes, never an answer.

    paths_FP = route(tree, embedder.embed([probe.prompt for probe in probes]))
    found = answers(model, tokenizer, probes, seed, memory, lambda numbers: [state.source(paths_FP[numbers])])
    rows = by_bucket(probes, found, starts=(1, 2, 4, 8, 16))

Shapes: F probes, M pairs of a probe and a candidate.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from fedmem.anchor.tokenizer import end_of_document
from fedmem.eval.facts import Probe
from fedmem.eval.perplexity import SourcesOf
from fedmem.eval.targets import Targets, greedy_matches, join, target_losses
from fedmem.memory.attach import Memory

CANDIDATES = 32


@dataclass(frozen=True)
class Answers:
    """Of each probe: whether it was answered exactly, how many other candidates there are, how many do not lose."""

    exact_F: np.ndarray
    others_F: np.ndarray
    ahead_F: np.ndarray


def answers(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    probes: Sequence[Probe],
    seed: int,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> Answers:
    """Put every probe to the model. `sources` gives the memory of a batch by the numbers of its probes.

    Candidates are the answer and at most 31 others that probes of its relation have, drawn by `seed`.
    """
    asked = _encoded(tokenizer, [(probe.prompt, f" {probe.answer}") for probe in probes])
    exact_F = greedy_matches(model, asked, memory, sources, batch)
    candidates = _candidates(probes, seed)
    owner_M = np.repeat(np.arange(len(probes)), [len(own) for own in candidates])
    pairs = _encoded(tokenizer, [(probes[i].prompt, f" {text}.") for i, own in enumerate(candidates) for text in own])
    of_pairs: SourcesOf | None = (lambda numbers_B: sources(owner_M[numbers_B])) if sources else None
    losses_M, _ = target_losses(model, pairs, memory, of_pairs, batch)
    answer_M = np.diff(owner_M, prepend=-1) > 0  # the first candidate of each probe
    ahead_M = (losses_M <= losses_M[answer_M][owner_M]) & ~answer_M
    return Answers(exact_F, np.bincount(owner_M) - 1, np.bincount(owner_M, weights=ahead_M).astype(np.int64))


def by_bucket(probes: Sequence[Probe], found: Answers, starts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each bucket of frequencies that has facts, rarest first; bucket b begins at `starts[b]` (rising).

    Columns: bucket, its least and greatest frequency, facts, share answered exactly (`exact`), share whose answer is
    the likeliest candidate (`ranked`), and what guessing among candidates would give (`chance`).
    Raises ValueError where a fact is rarer than the first bucket.
    """
    frequency_F = np.array([probe.frequency for probe in probes], dtype=np.int64)
    bucket_F = np.searchsorted(starts, frequency_F, side="right") - 1
    if (bucket_F < 0).any():
        raise ValueError(f"a fact occurs less often than the first bucket's {starts[0]} times")
    columns = {"exact": found.exact_F, "ranked": found.ahead_F == 0, "chance": 1 / (1 + found.others_F)}
    rows = list[dict[str, Any]]()
    for bucket in np.unique(bucket_F).tolist():
        own_F = bucket_F == bucket
        span = {"least": int(frequency_F[own_F].min()), "most": int(frequency_F[own_F].max())}
        shares = {name: float(column_F[own_F].mean()) for name, column_F in columns.items()}
        rows.append({"bucket": bucket, **span, "facts": int(own_F.sum()), **shares})
    return rows


def _candidates(probes: Sequence[Probe], seed: int) -> list[list[str]]:
    """Candidates of each probe, its answer first."""
    rng, answers_of = np.random.default_rng(seed), defaultdict[str, set[str]](set)
    for probe in probes:
        answers_of[probe.relation].add(probe.answer)
    found = list[list[str]]()
    for probe in probes:
        others = sorted(answers_of[probe.relation] - {probe.answer})
        drawn = rng.permutation(len(others))[: CANDIDATES - 1]
        found.append([probe.answer, *(others[i] for i in drawn)])
    return found


def _encoded(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Targets:
    """Each prompt, opened as a document is, and what is to come after it."""
    prompts, ends = (
        [e.ids for e in tokenizer.encode_batch(column, add_special_tokens=False)]
        for column in ([a for a, _ in pairs], [b for _, b in pairs])
    )
    start = end_of_document(tokenizer)
    return join([[start, *prompt] for prompt in prompts], ends)
