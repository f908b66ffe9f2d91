"""Retrieval of one document in context: the baseline of memory, alone and with it [docs/method.md, §5].

Invariants
- The search is exact: the greatest inner product, and never the text's own document.
- The loss is over the tokens that `sequence_losses` predicts of the same sequences: what was retrieved is read only.
- Nothing is cut from a text; what is retrieved is cut at its end to fit the length, and left out where none fits.

    retrieved_N = nearest(embedder.embed(training), embedder.embed(heldout))[sequences.document_N]
    targets = in_context(tokenizer, sequences, [training[i] for i in retrieved_N], length=256)
    retrieved = retrieval(model, targets)
    both = retrieval(model, targets, memory, lambda numbers: [state.source(paths_NP[numbers])])

A query of the whole text knows the text's future; one of its first words does not: report both [docs/method.md, §3].
An anchor of ours never looked past the end of a document in training, nor past its training length: where retrieval
is to be judged fairly, cut texts so that `length` stays within it, and say on what context the anchor was trained.

Shapes: N sequences, Q queries, M documents searched, D dimensions, T tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from fedmem.anchor.tokenizer import PAD, end_of_document
from fedmem.errors import UsageError
from fedmem.eval.perplexity import SourcesOf, mean
from fedmem.eval.targets import Targets, join, target_losses
from fedmem.memory.attach import Memory
from fedmem.training.sequences import Sequences

_CHUNK = 256  # queries whose products are held at once


def nearest(
    vectors_MD: NDArray[np.float32], queries_QD: NDArray[np.float32], own_Q: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Number of the document nearest to each query, `[Q]`; `own_Q` is the query's own document, or -1 if not searched.

    Raises UsageError where nothing is left to retrieve.
    """
    own_Q = np.full(len(queries_QD), -1) if own_Q is None else own_Q
    if len(vectors_MD) < 1 + bool((own_Q >= 0).any()):
        raise UsageError("There is no other document to retrieve; search in more training documents.")
    found_Q = np.empty(len(queries_QD), dtype=np.int64)
    for start in range(0, len(queries_QD), _CHUNK):
        own = own_Q[start : start + _CHUNK]
        product_QM = queries_QD[start : start + _CHUNK] @ vectors_MD.T
        product_QM[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        found_Q[start : start + _CHUNK] = product_QM.argmax(1)
    return found_Q


def in_context(tokenizer: Tokenizer, sequences: Sequences, retrieved: Sequence[str], length: int) -> Targets:
    """Each sequence after the text retrieved for it, an end of document between them, together at most `length` tokens.

    Raises UsageError where a sequence alone is longer.
    """
    rows = [row_T[row_T != PAD].tolist() for row_T in sequences.tokens_NT]
    if max(map(len, rows), default=0) > length:
        raise UsageError(f"A text is longer than {length} tokens; cut the texts shorter, or allow a longer context.")
    read = tokenizer.encode_batch(list(retrieved), add_special_tokens=False)
    end = end_of_document(tokenizer)
    contexts = [_context(encoding.ids, row, length, end) for encoding, row in zip(read, rows, strict=True)]
    return join(contexts, [row[1:] for row in rows])


def retrieval(
    model: PreTrainedModel,
    targets: Targets,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> dict[str, float]:
    """`loss` of the texts in nats a token, and `flops_ratio`; by sequence it is `target_losses`."""
    loss = mean(target_losses(model, targets, memory, sources, batch))
    return {"loss": loss, "flops_ratio": flops_ratio(targets)}


def flops_ratio(targets: Targets) -> float:
    """FLOPs with what was retrieved over those without: tokens read, as each costs about the same.

    The part of attention that grows with the square of the length is left out, so it is a floor.
    """
    tokens_N = (targets.tokens_NT != PAD).sum(1)
    return int(tokens_N.sum()) / int((tokens_N - targets.start_N + 1).sum())


def _context(retrieved: list[int], row: list[int], length: int, end: int) -> list[int]:
    """What is read before the first predicted token of `row`: what was retrieved, if there is room, and a token."""
    separator = [] if row[0] == end else [end]
    cut = retrieved[: max(0, length - len(row) - len(separator) - 1)]
    return [end, *cut, *separator, row[0]] if cut else row[:1]
