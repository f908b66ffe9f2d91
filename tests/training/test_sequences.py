"""Documents as sequences: nothing dropped, nothing leaks between documents, padding has no loss."""

import itertools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from fedmem.anchor.tokenizer import PAD, end_of_document, train_tokenizer
from fedmem.training.sequences import Batches, encode, readable, token_losses, trim
from tests.anchor.tokenizers import KINDS

TEXTS = ["one short text", "two " * 40, "", "three " * 11]
TOKENIZER = train_tokenizer(TEXTS, 300)
EOS = end_of_document(TOKENIZER)


def test_pieces_join_to_the_document():
    sequences = encode(TOKENIZER, TEXTS, length=16)
    for number, text in enumerate(TEXTS):
        pieces = [row[row != PAD].tolist() for row in sequences.tokens_NT[sequences.document_N == number]]
        joined = pieces[0] + list(itertools.chain(*(piece[1:] for piece in pieces[1:])))
        assert joined == [EOS, *TOKENIZER.encode(text).ids, EOS]


def test_every_token_but_the_first_is_predicted_once():
    sequences = encode(TOKENIZER, TEXTS, length=16)
    assert sequences.tokens() == sum(len(TOKENIZER.encode(text).ids) + 1 for text in TEXTS)


def test_padding_has_no_loss_and_no_influence():
    tokens = torch.tensor([[EOS, 5, 6, EOS, PAD, PAD]])
    logits = torch.randn(1, 6, 300, generator=torch.Generator().manual_seed(0))
    loss_BT, mask_BT = token_losses(logits, tokens)
    assert mask_BT.tolist() == [[True, True, True, False, False]]
    assert not loss_BT[0, 3:].any()
    assert torch.equal(loss_BT[:, :3], token_losses(logits[:, :4], tokens[:, :4])[0])


def test_a_tokenizer_whose_first_ids_are_ordinary_tokens():
    letters = {letter: number for number, letter in enumerate("abcd")}
    other = Tokenizer(models.BPE(letters, []))
    other.add_special_tokens(["<|endoftext|>"])
    sequences = encode(other, ["ab", "abcda"], length=8)
    assert sequences.tokens_NT.tolist() == [[4, 0, 1, 4, PAD, PAD, PAD, PAD], [4, 0, 1, 2, 3, 0, 4, PAD]]
    assert sequences.tokens() == 3 + 6
    logits = torch.zeros(2, 8, 5)
    assert token_losses(logits, sequences.tokens_NT)[1].sum() == 3 + 6
    assert readable(sequences.tokens_NT).min() == 0


def test_batches_follow_their_seed_and_visit_everything():
    first, again, other = ([Batches(10, 4, seed).at(step) for step in range(5)] for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert np.bincount(np.concatenate(first)).tolist() == [2] * 10


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (3, 8), (8, 8), (1, 2)])
def test_a_batch_is_the_same_whether_those_before_it_were_asked_for_or_not(count, batch):
    line = Batches(count, batch, 5)
    walked = [line.at(step) for step in range(9)]
    assert all(np.array_equal(Batches(count, batch, 5).at(step), walked[step]) for step in range(9))
    assert all(len(one) == batch for one in walked)


def test_no_sequences_is_an_error_and_not_an_endless_loop():
    with pytest.raises(ValueError, match="no sequence"):
        Batches(0, 4, 1).at(0)


def test_trim_keeps_every_token():
    tokens = torch.full((2, 64), PAD)
    tokens[0, :20] = 7
    assert trim(tokens).shape == (2, 32)


def test_the_models_own_tokens_begin_and_end_a_document():
    tokenizer = KINDS["sentencepiece_bpe"]()
    start, end = (tokenizer.token_to_id(name) for name in ("<s>", "</s>"))
    row = encode(tokenizer, ["A river</s>"], length=64).tokens_NT[0]
    ids = row[row != PAD].tolist()
    assert (ids[0], ids[-1]) == (start, end)
    assert not {start, end} & set(ids[1:-1])
