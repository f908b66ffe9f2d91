"""Attached memory: zero memory is nothing, batches equal single items, detaching leaves no trace."""

import pytest
import torch
from torch import nn

from fedmem.anchor.presets import new_anchor
from fedmem.memory.attach import attach
from fedmem.memory.ffn import BlockModule, RowsSource, new_rows

LAYERS, WIDTH, D_MODEL = 2, 4, 64


@pytest.fixture(scope="module")
def model():
    return new_anchor("nano", vocab_size=300, seed=1).eval()


@pytest.fixture
def tokens():
    return torch.randint(2, 300, (3, 9), generator=torch.Generator().manual_seed(0))


def some_rows(batch, seed=0):
    return 0.1 * torch.randn(batch, LAYERS, 3, WIDTH, D_MODEL, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_new_block_leaves_logits_bit_identical(model, tokens):
    bare = model(tokens).logits
    memory = attach(model)
    fresh = new_rows(LAYERS, WIDTH, D_MODEL, torch.Generator().manual_seed(3))
    with memory.using(RowsSource(fresh[None]), BlockModule.new(LAYERS, D_MODEL, WIDTH, seed=4)):
        assert torch.equal(model(tokens).logits, bare)
    memory.detach()


@torch.no_grad()
def test_batched_memory_equals_one_example_at_a_time(model, tokens):
    rows_BL3RD = some_rows(3)
    memory = attach(model)
    with memory.using(RowsSource(rows_BL3RD)):
        together = model(tokens).logits
    for number in range(3):
        with memory.using(RowsSource(rows_BL3RD[number : number + 1])):
            alone = model(tokens[number : number + 1]).logits
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-5, rtol=0)
    memory.detach()


@torch.no_grad()
def test_memory_is_the_papers_formula(model):
    rows_3RD = some_rows(1)[0, 0]
    hidden_BTD = torch.randn(2, 5, D_MODEL, generator=torch.Generator().manual_seed(7))
    m1, m2, m3 = rows_3RD[0], rows_3RD[1], rows_3RD[2].T
    wanted = torch.stack(
        [torch.stack([m3 @ (nn.functional.silu(m1 @ u) * (m2 @ u)) for u in row]) for row in hidden_BTD]
    )
    got = RowsSource(rows_3RD[None, None].expand(1, 1, -1, -1, -1))(0, hidden_BTD)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_levels_concatenate_to_their_sum(model, tokens):
    first, second = some_rows(1, 1), some_rows(1, 2)
    memory = attach(model)
    with memory.using(RowsSource(torch.cat([first, second], dim=3))):
        joined = model(tokens).logits
    with memory.using(RowsSource(first), RowsSource(second)):
        summed = model(tokens).logits
    memory.detach()
    torch.testing.assert_close(joined, summed, atol=1e-5, rtol=0)


@torch.no_grad()
def test_detaching_gives_back_the_bare_anchor(model, tokens):
    bare, keys = model(tokens).logits, list(model.state_dict())
    memory = attach(model)
    assert list(model.state_dict()) == keys
    with memory.using(RowsSource(some_rows(1))):
        assert not torch.equal(model(tokens).logits, bare)
    assert torch.equal(model(tokens).logits, bare)
    memory.detach()
    with memory.using(RowsSource(some_rows(1))):
        assert torch.equal(model(tokens).logits, bare)


def test_generate_with_cache_equals_without(model):
    memory = attach(model)
    prompt = torch.tensor([[1, 5, 9, 11]])
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    with memory.using(RowsSource(some_rows(1))):
        with_cache = model.generate(prompt, use_cache=True, **settings)
        without = model.generate(prompt, use_cache=False, **settings)
    memory.detach()
    assert torch.equal(with_cache, without)


def test_rows_round_trip_through_a_module():
    rows_L3RD = some_rows(1)[0]
    assert torch.equal(BlockModule.from_rows(rows_L3RD).rows(), rows_L3RD)


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="batch, layers, 3"):
        RowsSource(torch.zeros(2, 4, 8))


def test_a_model_without_mlps_is_refused():
    with pytest.raises(TypeError, match="Llama-shaped"):
        attach(nn.Linear(2, 2))
