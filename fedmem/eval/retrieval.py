"""Measure retrieval of one document in context, a baseline for memory, alone and together with it [docs/method.md, §5].

Invariants
- The search is exact: it takes the greatest inner product, and never the text's own document.
- The loss is over the tokens that `sequence_losses` predicts of the same sequences. The retrieved text is only context.
- Nothing is cut from a text. The retrieved text is cut at its end to fit the length, and left out if nothing fits.

    retrieved_N = find_nearest(embedder.embed(training), embedder.embed(heldout))[sequences.document_N]
    targets = prepend_retrieved(tokenizer, sequences, [training[i] for i in retrieved_N], length=256)
    retrieved = measure_retrieval(model, targets)
    both = measure_retrieval(model, targets, memory, lambda numbers: [state.source(paths_NP[numbers])])

A query of the whole text contains the words to predict; a query of its first words does not. Report both
[docs/method.md, §3]. In training, our anchors never attend past the end of a document or past their training length.
For a fair comparison cut texts so that `length` is within the training length, and report that length.

Shapes: N sequences, Q queries, M documents searched, D dimensions, T tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from fedmem.anchor.tokenizer import PAD, end_of_document, start_of_document, text_ids
from fedmem.errors import UsageError
from fedmem.eval.perplexity import SourcesOf, mean_loss
from fedmem.eval.targets import Targets, join_targets, target_losses
from fedmem.memory.attach import Memory
from fedmem.training.sequences import Sequences

_CHUNK = 256  # queries whose products are in memory at once


def find_nearest(
    vectors_MD: NDArray[np.float32], queries_QD: NDArray[np.float32], own_Q: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Return the number of the document nearest to each query.

    Args:
        vectors_MD: the searched documents.
        queries_QD: the queries.
        own_Q: number of the query's excluded document, which is left out, or -1 if it is not among the documents.

    Returns:
        `[Q]` int64.

    Raises:
        UsageError: there is no other document.
    """
    own_Q = np.full(len(queries_QD), -1) if own_Q is None else own_Q
    if len(vectors_MD) < 1 + bool((own_Q >= 0).any()):
        raise UsageError("There is no other document to retrieve; search in more training documents.")
    nearest_Q = np.empty(len(queries_QD), dtype=np.int64)
    for start in range(0, len(queries_QD), _CHUNK):
        excluded = own_Q[start : start + _CHUNK]
        product_QM = queries_QD[start : start + _CHUNK] @ vectors_MD.T
        product_QM[np.flatnonzero(excluded >= 0), excluded[excluded >= 0]] = -np.inf
        nearest_Q[start : start + _CHUNK] = product_QM.argmax(1)
    return nearest_Q


def prepend_retrieved(tokenizer: Tokenizer, sequences: Sequences, retrieved: Sequence[str], length: int) -> Targets:
    """Return each sequence as a target after the text retrieved for it, with an end of document between them.

    Args:
        tokenizer: that of the anchor.
        sequences: the texts.
        retrieved: the retrieved text of each sequence.
        length: the most tokens of context and sequence together.

    Raises:
        UsageError: a sequence alone is longer than `length`.
    """
    rows = [row_T[row_T != PAD].tolist() for row_T in sequences.tokens_NT]
    if max(map(len, rows), default=0) > length:
        raise UsageError(f"A text is longer than {length} tokens; cut the texts shorter, or allow a longer context.")
    start, end = start_of_document(tokenizer), end_of_document(tokenizer)
    retrieved_ids = text_ids(tokenizer, retrieved)
    contexts = [_context(ids, row, length, start, end) for ids, row in zip(retrieved_ids, rows, strict=True)]
    return join_targets(contexts, [row[1:] for row in rows])


def measure_retrieval(
    model: PreTrainedModel,
    targets: Targets,
    memory: Memory | None = None,
    sources: SourcesOf | None = None,
    batch: int = 32,
) -> dict[str, float]:
    """Measure retrieval over all texts; `target_losses` gives the losses by sequence.

    Args:
        model: the anchor.
        targets: from `prepend_retrieved`.
        memory: attached to `model`; None for a model without memory.
        sources: gives the sources of a batch; None for the bare anchor.
        batch: sequences in one forward pass.

    Returns:
        `loss` in nats a token, and `flops_ratio`.
    """
    loss = mean_loss(target_losses(model, targets, memory, sources, batch))
    return {"loss": loss, "flops_ratio": flops_ratio(targets)}


def flops_ratio(targets: Targets) -> float:
    """Return the ratio of FLOPs with and without retrieved texts, estimated by the number of tokens.

    The part of attention that grows with the square of the length is left out, so this is a lower bound.

    Args:
        targets: from `prepend_retrieved`.

    Returns:
        1 or more.
    """
    tokens_N = (targets.tokens_NT != PAD).sum(1)
    return int(tokens_N.sum()) / int((tokens_N - targets.start_N + 1).sum())


def _context(retrieved: list[int], row: list[int], length: int, start: int, end: int) -> list[int]:
    """Return the context of the first predicted token of `row`: the retrieved text, if it fits, and the first token."""
    separator = [] if row[0] == end else [end]
    cut = retrieved[: max(0, length - len(row) - len(separator) - 1)]
    return [start, *cut, *separator, row[0]] if cut else row[:1]
