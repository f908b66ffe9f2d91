"""KV memory against its formula, one row and one token at a time [docs/method.md, §2]."""

import math

import pytest
import torch

from fedmem.memory.attach import attach
from fedmem.memory.block import make_source
from fedmem.memory.sites import sites_of
from tests.memory.models import FAMILIES, model_of, segments, some_fetch, spec_of

HIDDEN = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_kv_is_attention_over_learned_keys_by_head(family):
    model = model_of(family)
    spec, sites = spec_of(model, "kv", widths=(3,)), sites_of(model)[1]
    fetched_BX, shape = some_fetch(spec, scale=1), spec.shape
    parts = {name: part.view(3, shape.kv_heads, -1) for name, part in segments(spec, fetched_BX[0], 1).items()}
    take = sites["q"].part or (lambda out: out)
    query = take(sites["q"].module(HIDDEN)).flatten(2).view(5, shape.heads, shape.head_dim)
    rows = []
    for token in range(5):
        for head in range(shape.heads):
            own = head // (shape.heads // shape.kv_heads)
            weights = torch.softmax(parts["key"][:, own] @ query[token, head] / math.sqrt(shape.head_dim), 0)
            rows.append(weights @ parts["value"][:, own])
    memory, got = attach(model), []
    heads = torch.zeros(1, 5, shape.heads * shape.head_dim)
    with memory.using(make_source(spec, fetched_BX)):
        module = sites["heads"].module
        keep = module.register_forward_hook(lambda _module, args, _out: got.append(args[0]))
        sites["q"].module(HIDDEN)
        module(heads)
    keep.remove()
    torch.testing.assert_close(got[0][0], torch.stack(rows).view(5, -1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_layer_without_rows_is_left_as_it_is():
    model = model_of("llama")
    spec, ids = spec_of(model, "kv", widths=((0, 0),)), torch.tensor([[3, 5, 7]])
    bare, memory = model(ids).logits, attach(model)
    with memory.using(make_source(spec, some_fetch(spec))):
        assert torch.equal(model(ids).logits, bare)
    memory.detach()
