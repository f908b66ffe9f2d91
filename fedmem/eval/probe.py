"""Probe a model for long-tail facts: exact match, and the rank of the answer among other answers of the relation.

Invariants
- Exact match compares the answer with greedy decoding of as many tokens [docs/method.md, §5].
- Candidates are scored with the full stop after them, else ` 1` would always be better than ` 12`. A tie counts as
  lost.
- Memory is fetched by the prompt only: `sources` gets the numbers of the probes, never an answer.

    paths_FP = route(tree, embedder.embed([probe.prompt for probe in probes]))
    results = ask_probes(model, tokenizer, probes, seed, memory, lambda numbers: [state.source(paths_FP[numbers])])
    rows = group_by_bucket(probes, results, starts=(1, 2, 4, 8, 16))

Shapes: F probes, M pairs of a probe and a candidate.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from fedmem.anchor.tokenizer import start_of_document, text_ids
from fedmem.eval.facts import Probe
from fedmem.eval.perplexity import SourcesOf
from fedmem.eval.targets import Targets, greedy_matches, join_targets, target_losses
from fedmem.memory.attach import Memory

CANDIDATES = 32


@dataclass(frozen=True)
class Answers:
    """The results of F probes.

    Attributes:
        exact_F: True for exact answers.
        others_F: number of wrong candidates.
        ahead_F: number of the wrong candidates that are at least as likely as the answer.
    """

    exact_F: np.ndarray
    others_F: np.ndarray
    ahead_F: np.ndarray


def ask_probes(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    probes: Sequence[Probe],
    seed: int,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> Answers:
    """Ask the model every probe.

    Candidates are the answer and at most 31 other answers of probes of the same relation.

    Args:
        model: the anchor.
        tokenizer: that of the anchor.
        probes: the questions.
        seed: decides the candidates.
        memory: attached to `model`; None for a model without memory.
        sources: gives the sources of a batch by the numbers of its probes; None for the bare anchor.
        batch: prompts in one forward pass.
    """
    targets = _encoded(tokenizer, [(probe.prompt, f" {probe.answer}") for probe in probes])
    exact_F = greedy_matches(model, targets, memory, sources, batch)
    candidates = _candidates(probes, seed)
    probe_M = np.repeat(np.arange(len(probes)), [len(texts) for texts in candidates])
    pairs = _encoded(
        tokenizer, [(probes[i].prompt, f" {text}.") for i, texts in enumerate(candidates) for text in texts]
    )
    pair_sources: SourcesOf | None = (lambda numbers_B: sources(probe_M[numbers_B])) if sources else None
    losses_M, _ = target_losses(model, pairs, memory, pair_sources, batch)
    is_answer_M = np.diff(probe_M, prepend=-1) > 0  # the first candidate of each probe
    ahead_M = (losses_M <= losses_M[is_answer_M][probe_M]) & ~is_answer_M
    return Answers(exact_F, np.bincount(probe_M) - 1, np.bincount(probe_M, weights=ahead_M).astype(np.int64))


def group_by_bucket(probes: Sequence[Probe], results: Answers, starts: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each bucket of frequencies that has facts, rarest first.

    Args:
        probes: the questions.
        results: the answers to them.
        starts: the least frequency of each bucket, rising.

    Returns:
        Rows with `bucket`, its `least` and `most` frequency, number of `facts`, share answered exactly (`exact`), share
        whose answer is the most likely candidate (`ranked`), and the share of a random guess (`chance`).

    Raises:
        ValueError: a fact is rarer than the first bucket.
    """
    frequency_F = np.array([probe.frequency for probe in probes], dtype=np.int64)
    bucket_F = np.searchsorted(starts, frequency_F, side="right") - 1
    if (bucket_F < 0).any():
        raise ValueError(f"a fact occurs less often than the first bucket's {starts[0]} times")
    columns = {"exact": results.exact_F, "ranked": results.ahead_F == 0, "chance": 1 / (1 + results.others_F)}
    rows = list[dict[str, Any]]()
    for bucket in np.unique(bucket_F).tolist():
        inside_F = bucket_F == bucket
        span = {"least": int(frequency_F[inside_F].min()), "most": int(frequency_F[inside_F].max())}
        shares = {name: float(column_F[inside_F].mean()) for name, column_F in columns.items()}
        rows.append({"bucket": bucket, **span, "facts": int(inside_F.sum()), **shares})
    return rows


def _candidates(probes: Sequence[Probe], seed: int) -> list[list[str]]:
    """Return the candidates of each probe, its answer first."""
    rng, answers_of = np.random.default_rng(seed), defaultdict[str, set[str]](set)
    for probe in probes:
        answers_of[probe.relation].add(probe.answer)
    candidates = list[list[str]]()
    for probe in probes:
        others = sorted(answers_of[probe.relation] - {probe.answer})
        drawn = rng.permutation(len(others))[: CANDIDATES - 1]
        candidates.append([probe.answer, *(others[i] for i in drawn)])
    return candidates


def _encoded(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> Targets:
    """Return each prompt, preceded by the token that begins a document, as context, and its end as target."""
    prompts, ends = (text_ids(tokenizer, column) for column in ([a for a, _ in pairs], [b for _, b in pairs]))
    start = start_of_document(tokenizer)
    return join_targets([[start, *prompt] for prompt in prompts], ends)
