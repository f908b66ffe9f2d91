"""Retrieval of one document: the exact nearest other one, in context, with the loss on the text alone."""

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import PAD, end_of_document, train_tokenizer
from fedmem.errors import UsageError
from fedmem.eval.perplexity import mean_loss, sequence_losses
from fedmem.eval.retrieval import find_nearest, flops_ratio, measure_retrieval, prepend_retrieved
from fedmem.eval.targets import target_losses
from fedmem.memory.attach import attach
from fedmem.memory.sites import spec_for
from fedmem.routing.embedder import unit
from fedmem.training.bank_state import BankState
from fedmem.training.sequences import encode

TEXTS = [
    f"the {('red', 'blue', 'green')[n % 3]} house number {n} stands in row {n * 7 % 11}" * (n % 4) for n in range(24)
]
TOKENIZER = train_tokenizer(TEXTS, 300)
EOS = end_of_document(TOKENIZER)
SEQUENCES = encode(TOKENIZER, TEXTS, 32)
RETRIEVED = [TEXTS[(n * 5 + 2) % 24] for n in SEQUENCES.document_N]
MODEL = new_anchor("nano", 300, 0).eval()
MEMORY = attach(MODEL)
STATE = BankState.new(spec_for(MODEL, "ffn", 3, (4,)), 1)
STATE.levels[0].copy_(torch.randn(STATE.levels[0].shape, generator=torch.Generator().manual_seed(2)) * 0.2)


def sources(numbers):
    return [STATE.source(SEQUENCES.document_N[numbers, None] % 3)]


def vectors(count, seed):
    return unit(np.random.default_rng(seed).normal(size=(count, 16)))


def rows(tokens):
    return [row[row != PAD].tolist() for row in tokens]


def test_the_nearest_is_that_of_every_product():
    documents, queries = vectors(600, 0), vectors(700, 1)
    wanted = [int(np.argmax([float(d @ q) for d in documents.astype(np.float64)])) for q in queries.astype(np.float64)]
    assert find_nearest(documents, queries).tolist() == wanted


def test_a_document_does_not_retrieve_itself():
    documents = vectors(600, 0)
    own = np.arange(600)
    own[::7] = -1  # as if these were no part of the training text
    products = (documents @ documents.T).astype(np.float64)
    products[own >= 0, own[own >= 0]] = -2
    assert find_nearest(documents, documents).tolist() == list(range(600))
    assert find_nearest(documents, documents, own).tolist() == products.argmax(1).tolist()


def test_there_must_be_another_document():
    with pytest.raises(UsageError):
        find_nearest(vectors(0, 0), vectors(1, 0))
    with pytest.raises(UsageError):
        find_nearest(vectors(1, 0), vectors(1, 0), np.array([0]))
    assert find_nearest(vectors(1, 0), vectors(1, 0)).tolist() == [0]


def test_a_text_stands_whole_after_what_was_retrieved_for_it():
    targets = prepend_retrieved(TOKENIZER, SEQUENCES, RETRIEVED, 40)
    room = later = False
    for tokens, start, row, text in zip(
        rows(targets.tokens_NT), targets.start_N.tolist(), rows(SEQUENCES.tokens_NT), RETRIEVED, strict=True
    ):
        assert tokens[start - 1 :] == row
        assert len(tokens) <= 40
        before = tokens[: start - 1]
        if before:
            assert before[0] == EOS
            cut = before[1:] if row[0] == EOS else before[1:-1]  # one <eos> stands between the two
            assert row[0] == EOS or before[-1] == EOS
            assert cut == TOKENIZER.encode(text).ids[: len(cut)]
            assert len(tokens) == 40 or cut == TOKENIZER.encode(text).ids
            room |= len(tokens) < 40
            later |= row[0] != EOS
    assert room  # some were cut, some were not
    assert later  # some are the later pieces of a long text
    assert max(len(row) for row in rows(targets.tokens_NT)) == 40


def test_where_nothing_fits_the_text_stands_alone():
    targets = prepend_retrieved(TOKENIZER, SEQUENCES, RETRIEVED, 32)
    for tokens, row in zip(rows(targets.tokens_NT), rows(SEQUENCES.tokens_NT), strict=True):
        assert len(row) < 31 or tokens == row
    with pytest.raises(UsageError, match="longer than 31"):
        prepend_retrieved(TOKENIZER, SEQUENCES, RETRIEVED, 31)


@pytest.mark.parametrize("with_memory", [False, True])
def test_with_nothing_retrieved_it_is_the_loss_of_the_texts(with_memory):
    memory, own_sources = (MEMORY, sources) if with_memory else (None, None)
    targets = prepend_retrieved(TOKENIZER, SEQUENCES, [""] * len(SEQUENCES), 48)
    losses, counts = target_losses(MODEL, targets, memory, own_sources)
    wanted, all_counts = sequence_losses(MODEL, SEQUENCES.tokens_NT, memory, own_sources)
    assert np.array_equal(counts, all_counts)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    found = measure_retrieval(MODEL, targets, memory, own_sources)
    assert found == {"loss": pytest.approx(mean_loss((wanted, all_counts))), "flops_ratio": 1.0}


@pytest.mark.parametrize("with_memory", [False, True])
@torch.no_grad()
def test_the_loss_is_over_the_text_alone(with_memory):
    memory, own_sources = (MEMORY, sources) if with_memory else (None, None)
    targets = prepend_retrieved(TOKENIZER, SEQUENCES, RETRIEVED, 48)
    total = tokens = 0
    for number, (read, row) in enumerate(zip(rows(targets.tokens_NT), rows(SEQUENCES.tokens_NT), strict=True)):
        with MEMORY.using(*(sources(np.array([number])) if with_memory else [])):
            scores = MODEL(torch.tensor([read])).logits[0].double().log_softmax(-1)
        places = range(len(read) - len(row) + 1, len(read))
        total -= sum(float(scores[at - 1, read[at]]) for at in places)
        tokens += len(places)
    assert tokens == SEQUENCES.tokens()  # as many as without retrieval
    found = measure_retrieval(MODEL, targets, memory, own_sources, batch=5)
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-6)
    assert found["loss"] != pytest.approx(
        mean_loss(sequence_losses(MODEL, SEQUENCES.tokens_NT, memory, own_sources)), rel=1e-6
    )


def test_flops_are_tokens_read():
    targets = prepend_retrieved(TOKENIZER, SEQUENCES, RETRIEVED, 48)
    read, own = (sum(map(len, rows(tokens))) for tokens in (targets.tokens_NT, SEQUENCES.tokens_NT))
    assert flops_ratio(targets) == read / own > 1
