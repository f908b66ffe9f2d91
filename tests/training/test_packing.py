"""Packed rows: every sequence once, one group a row, and nothing seen of the neighbour, in every supported family."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmem.anchor.tokenizer import PAD
from fedmem.training.packing import pack, packed_loss
from fedmem.training.sequences import Sequences, readable, token_losses
from tests.memory.models import FAMILIES, model_of

LENGTH = 16


def sequences_of(sizes):
    """Sequences of these sizes; token values tell them apart."""
    tokens_NT = torch.full((len(sizes), LENGTH), PAD)
    for number, size in enumerate(sizes):
        tokens_NT[number, :size] = torch.arange(size) + 2 + 7 * number % 90
        tokens_NT[number, 0] = 1
    return Sequences(tokens_NT, np.arange(len(sizes)))


def segments(packed, row):
    """The tokens of each document in a row."""
    tokens, positions = packed.tokens_MT[row], packed.positions_MT[row]
    tokens, positions = tokens[tokens != PAD], positions[tokens != PAD]
    return [part.tolist() for part in torch.tensor_split(tokens, torch.nonzero(positions == 0).flatten()[1:])]


@given(st.lists(st.tuples(st.integers(2, LENGTH), st.integers(0, 2)), max_size=40))
def test_every_sequence_lies_whole_in_one_row_of_its_group(rows):
    sizes, groups_N = [size for size, _ in rows], np.array([group for _, group in rows], dtype=np.int64)
    sequences = sequences_of(sizes)
    packed = pack(sequences, groups_N)
    originals = [row[row != PAD].tolist() for row in sequences.tokens_NT]
    found = [part for row in range(len(packed)) for part in segments(packed, row)]
    assert sorted(found) == sorted(originals)
    for row, first in enumerate(packed.first_M):
        wanted = {tuple(originals[n]) for n in np.flatnonzero(groups_N == groups_N[first])}
        assert {tuple(part) for part in segments(packed, row)} <= wanted


def test_rows_are_full():
    sizes = np.random.default_rng(0).integers(2, LENGTH + 1, 300).tolist()
    packed = pack(sequences_of(sizes))
    assert (packed.tokens_MT != PAD).float().mean() > 0.95


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_loss_of_packed_rows_is_that_of_the_documents_alone(family):
    model, sequences = model_of(family), sequences_of([5, 11, 3, 16, 8, 4])
    packed = pack(sequences)
    assert len(packed) < 6
    got = packed_loss(model, *packed.batch(np.arange(len(packed))))
    loss_BT, mask_BT = token_losses(model(readable(sequences.tokens_NT)).logits, sequences.tokens_NT)
    assert got.item() == pytest.approx((loss_BT.sum() / mask_BT.sum()).item(), abs=1e-5)
    whole = torch.arange(packed.tokens_MT.shape[1]).expand_as(packed.tokens_MT)
    assert packed_loss(model, packed.tokens_MT, whole).item() != pytest.approx(got.item(), abs=1e-3)


def test_nothing_packs_to_nothing():
    assert len(pack(sequences_of([]))) == 0
