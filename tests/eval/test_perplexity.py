"""A loss is that of its tokens alone, whatever the batch, and memory is in use for its batch only."""

import numpy as np
import pytest
import torch

from fedmem.anchor.presets import new_anchor
from fedmem.anchor.tokenizer import PAD
from fedmem.eval.perplexity import mean_loss, sequence_losses, use_memory
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source
from fedmem.memory.sites import spec_for

VOCABULARY = 64
MODEL = new_anchor("nano", VOCABULARY, 0).eval()
MEMORY = attach(MODEL)
SPEC = spec_for(MODEL, "ffn", 1, [(2,) * len(MODEL.model.layers)])
SOURCE = make_shared_source(SPEC, 0.3 * torch.randn(SPEC.fetch_size, generator=torch.Generator().manual_seed(1)))
LENGTHS = (9, 2, 5, 7, 1)


@pytest.fixture(scope="module")
def tokens():
    rows = torch.full((len(LENGTHS), max(LENGTHS)), PAD)
    drawn = torch.randint(2, VOCABULARY, rows.shape, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(LENGTHS):
        rows[row, :length] = drawn[row, :length]
    return rows


@torch.no_grad()
def loss_by_hand(tokens_T, memory_in_use):
    """Summed loss of one sequence without padding, by the definition of cross-entropy."""
    with MEMORY.using(*([SOURCE] if memory_in_use else [])):
        logits = MODEL(tokens_T[None]).logits[0, :-1].double()
    return float(-logits.log_softmax(-1)[torch.arange(len(tokens_T) - 1), tokens_T[1:]].sum())


@pytest.mark.parametrize("memory_in_use", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 32])
def test_losses_are_those_of_each_sequence_alone(tokens, batch, memory_in_use):
    sources = (lambda _: [SOURCE]) if memory_in_use else None
    losses, counts = sequence_losses(MODEL, tokens, MEMORY, sources, batch)
    expected = [loss_by_hand(row[:length], memory_in_use) for row, length in zip(tokens, LENGTHS, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert counts.tolist() == [length - 1 for length in LENGTHS]


def test_sources_get_the_numbers_of_their_batch(tokens):
    asked = []
    sequence_losses(MODEL, tokens, MEMORY, lambda numbers: asked.append(numbers.tolist()) or [SOURCE], batch=2)
    assert asked == [[0, 1], [2, 3], [4]]


def test_memory_is_out_of_use_after_its_batch(tokens):
    with torch.no_grad():
        bare = MODEL(tokens[:1]).logits
        with use_memory(MEMORY, lambda _: [SOURCE], np.array([0])):
            assert not torch.equal(MODEL(tokens[:1]).logits, bare)
        assert torch.equal(MODEL(tokens[:1]).logits, bare)
        with use_memory(None, None, np.array([0])):
            assert torch.equal(MODEL(tokens[:1]).logits, bare)


def test_a_mean_weighs_tokens_and_not_sequences():
    assert mean_loss((np.array([8.0, 1.0]), np.array([2, 1]))) == 3.0


def test_nothing_to_measure_gives_empty_arrays():
    losses, counts = sequence_losses(MODEL, torch.zeros(0, 4, dtype=torch.int64))
    assert (losses.dtype, counts.dtype, len(losses), len(counts)) == (np.float64, np.int64, 0, 0)
