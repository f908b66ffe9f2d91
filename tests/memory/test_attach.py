"""Attached memory, in every supported family: zero memory is nothing, batches equal single items, no trace is left."""

import pytest
import torch
from torch import nn

from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source, make_source, new_blocks, new_fetch
from tests.memory.models import FAMILIES, KINDS, model_of, some_fetch, some_tokens, spec_of

families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", KINDS)


@families
@kinds
@torch.no_grad()
def test_new_memory_leaves_logits_bit_identical(family, kind):
    model, tokens = model_of(family), some_tokens()
    bare, memory, spec = model(tokens).logits, attach(model), spec_of(model, kind)
    with memory.using(make_shared_source(spec, new_fetch(spec, torch.Generator().manual_seed(3)))):
        assert torch.equal(model(tokens).logits, bare)


@families
@kinds
@torch.no_grad()
def test_batched_memory_equals_one_example_at_a_time(family, kind):
    model, tokens = model_of(family), some_tokens()
    memory, spec = attach(model), spec_of(model, kind)
    fetched_BX, bare = some_fetch(spec, 3), model(tokens).logits
    with memory.using(make_source(spec, fetched_BX)):
        together = model(tokens).logits
    assert not torch.allclose(together, bare, atol=1e-3)
    for number in range(3):
        with memory.using(make_source(spec, fetched_BX[number : number + 1])):
            alone = model(tokens[number : number + 1]).logits
        torch.testing.assert_close(together[number : number + 1], alone, atol=2e-5, rtol=0)


@families
@kinds
def test_generate_with_cache_equals_without(family, kind):
    model, prompt = model_of(family), torch.tensor([[1, 5, 9, 11]])
    spec = spec_of(model, kind)
    settings = {"max_new_tokens": 10, "do_sample": False, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    with attach(model).using(make_source(spec, some_fetch(spec))):
        with_cache = model.generate(prompt, use_cache=True, **settings)
        without = model.generate(prompt, use_cache=False, **settings)
    assert torch.equal(with_cache, without)


@families
@torch.no_grad()
def test_save_and_load_keep_the_bare_model(family, tmp_path):
    model, tokens = model_of(family), some_tokens()
    memory, spec, bare = attach(model), spec_of(model), model(tokens).logits
    with memory.using(make_shared_source(spec, some_fetch(spec)[0])):
        model.save_pretrained(tmp_path)
        with_memory = model(tokens).logits
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens).logits, bare)
    with attach(again).using(make_shared_source(spec, some_fetch(spec)[0])):
        assert torch.equal(again(tokens).logits, with_memory)


@families
@kinds
@torch.no_grad()
def test_detaching_gives_back_the_bare_anchor(family, kind):
    model, tokens = model_of(family), some_tokens()
    bare, keys, spec = model(tokens).logits, list(model.state_dict()), spec_of(model, kind)
    memory = attach(model)
    with memory.using(make_shared_source(spec, some_fetch(spec)[0])):
        assert list(model.state_dict()) == keys
        assert not torch.equal(model(tokens).logits, bare)
    assert torch.equal(model(tokens).logits, bare)
    memory.detach()
    assert torch.equal(model(tokens).logits, bare)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@kinds
def test_gradients_reach_the_fetch_and_agree_with_finite_differences(kind):
    model, tokens = model_of("llama"), some_tokens(2)
    spec = spec_of(model, kind, widths=(2,))
    fetched_BX, way_BX = some_fetch(spec, 2, scale=0.3).requires_grad_(), some_fetch(spec, 2, seed=5, scale=1.0)

    def loss(values_BX):
        with attach(model).using(make_source(spec, values_BX)):
            return model(tokens, labels=tokens).loss

    loss(fetched_BX).backward()
    with torch.no_grad():
        slope = (loss(fetched_BX + 1e-3 * way_BX) - loss(fetched_BX - 1e-3 * way_BX)) / 2e-3
    assert slope.item() == pytest.approx((fetched_BX.grad * way_BX).sum().item(), rel=2e-2, abs=2e-3)
    assert (fetched_BX.grad.abs().sum(1) > 1e-3).all()


@torch.no_grad()
def test_levels_add_up():
    model, tokens = model_of("llama"), some_tokens()
    both, first, second = spec_of(model), spec_of(model, widths=(4,)), spec_of(model, widths=(2,))
    one, two = some_fetch(first, 3, seed=1), some_fetch(second, 3, seed=2)
    memory = attach(model)
    with memory.using(make_source(both, both.join([one, two]))):
        joined = model(tokens).logits
    with memory.using(make_source(first, one), make_source(second, two)):
        summed = model(tokens).logits
    torch.testing.assert_close(joined, summed, atol=1e-5, rtol=0)


@kinds
@torch.no_grad()
def test_layers_may_have_widths_of_their_own(kind):
    model, tokens = model_of("llama"), some_tokens()
    ragged, dense = spec_of(model, kind, widths=((0, 3),)), spec_of(model, kind, widths=(3,))
    late_BX = some_fetch(ragged, 3)
    memory, rows = attach(model), ragged.fetch_size
    early_BX = new_blocks(dense, 1, 1, torch.Generator().manual_seed(1))[:, : dense.fetch_size - rows].expand(3, -1)
    with memory.using(make_source(ragged, late_BX)):
        got = model(tokens).logits
    with memory.using(make_source(dense, torch.cat([early_BX, late_BX], dim=1))):
        wanted = model(tokens).logits
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_expanded_block_gets_the_gradient_of_each_item(kind):
    model, tokens = model_of("llama"), some_tokens()
    spec = spec_of(model, kind)
    memory, block_X = attach(model.requires_grad_(False)), some_fetch(spec)[0]

    def grads(tokens_BT):
        leaf_BX = block_X.expand(len(tokens_BT), -1).requires_grad_()
        with memory.using(make_source(spec, leaf_BX)):
            return torch.autograd.grad(model(tokens_BT).logits.square().sum(), leaf_BX)[0]

    alone = torch.cat([grads(tokens[n : n + 1]) for n in range(len(tokens))])
    torch.testing.assert_close(grads(tokens), alone, atol=1e-4, rtol=1e-4)


def test_a_fetch_of_another_size_is_refused():
    spec = spec_of(model_of("llama"))
    with pytest.raises(ValueError, match="a fetch must be"):
        make_source(spec, torch.zeros(2, spec.fetch_size + 1))


def test_an_unknown_architecture_kind_or_width_is_refused():
    model = nn.Linear(2, 2)
    model.config = type("Config", (), {"model_type": "mamba"})
    with pytest.raises(UsageError, match="mamba"):
        attach(model)
    with pytest.raises(UsageError, match="lora_ffn"):
        spec_of(model_of("llama"), "lora_mlp").fetch_size  # noqa: B018
    with pytest.raises(UsageError, match="2 layers"):
        spec_of(model_of("llama"), widths=((1, 2, 3),))


def with_checkpointing(model, options):
    """Switch gradient checkpointing on, by the name that this version of transformers has for it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def rows_gradient(kind, is_outside, **checkpointing):
    """The gradient of a fetch; the backward pass runs inside or outside `using`."""
    model, tokens = model_of("llama").train(), some_tokens()
    spec = spec_of(model, kind)
    fetched_BX = some_fetch(spec, batch=3).requires_grad_()
    if checkpointing:
        with_checkpointing(model, checkpointing)
    with attach(model).using(make_source(spec, fetched_BX)):
        loss = model(tokens, labels=tokens, use_cache=False).loss
        if not is_outside:
            loss.backward()
    if is_outside:
        loss.backward()
    return fetched_BX.grad


@kinds
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_is_right_inside_using_and_refused_outside(kind, use_reentrant):
    plain = rows_gradient(kind, is_outside=True)
    torch.testing.assert_close(rows_gradient(kind, is_outside=False, use_reentrant=use_reentrant), plain)
    with pytest.raises(UsageError, match="inside it"):
        rows_gradient(kind, is_outside=True, use_reentrant=use_reentrant)


def test_the_bare_anchor_may_be_trained_with_checkpointing_after_its_memory():
    model, tokens = model_of("llama").train(), some_tokens()
    with_checkpointing(model, {"use_reentrant": False})
    memory, spec = attach(model), spec_of(model)
    model(tokens, labels=tokens).loss.backward()
    with memory.using(make_source(spec, some_fetch(spec, batch=3))), torch.no_grad():
        model(tokens)
    with memory.using():
        model(tokens, labels=tokens).loss.backward()


@families
@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_float32_rows_are_added_to_a_model_of_half_precision(family, kind, dtype):
    model, tokens = model_of(family), some_tokens()
    spec = spec_of(model, kind)
    fetched_X = some_fetch(spec)[0]
    with attach(model).using(make_shared_source(spec, fetched_X)):
        wanted = model(tokens).logits
    memory = attach(model.to(dtype))
    with memory.using(make_shared_source(spec, fetched_X)):
        logits = model(tokens).logits
    assert logits.dtype == dtype
    assert (logits.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


@kinds
@torch.no_grad()
def test_rows_of_less_precision_than_the_model_are_refused(kind):
    model, tokens = model_of("llama"), some_tokens()
    spec = spec_of(model, kind)
    with (
        attach(model).using(make_shared_source(spec, some_fetch(spec)[0].bfloat16())),
        pytest.raises(UsageError, match="float32"),
    ):
        model(tokens)
