"""Each kind of memory against its formula, written out one row and one token at a time [docs/method.md, §2]."""

import math

import pytest
import torch
from torch.nn import functional as F

from fedmem.memory.attach import attach
from fedmem.memory.block import make_source, new_blocks
from fedmem.memory.sites import sites_of
from tests.memory.models import FAMILIES, KINDS, model_of, some_fetch, spec_of

FIVE = torch.Generator().manual_seed(7)
HIDDEN = torch.randn(1, 5, 32, generator=FIVE)


def segments(spec, fetched_X, layer):
    """The segments of one layer of a single-level fetch, each `[R, size]`."""
    width, found, at = spec.widths[0][layer], {}, sum(spec.layer_sizes()[:layer])
    for name, size in spec.segments.items():
        found[name] = fetched_X[at : at + width * size].view(width, size)
        at += width * size
    return found


@torch.no_grad()
def added(model, spec, fetched_BX, site, inputs, layer=1):
    """What memory adds at a site of a layer when its module is called alone."""
    place, memory = sites_of(model)[layer][site], attach(model)
    take = place.part or (lambda out: out)
    bare = take(place.module(inputs)).flatten(2)
    with memory.using(make_source(spec, fetched_BX)):
        out = take(place.module(inputs)).flatten(2) - bare
    memory.detach()
    return out[0]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_ffn_is_the_formula_with_the_anchors_activation(family):
    model = model_of(family)
    spec = spec_of(model, "ffn", widths=(3,))
    fetched_BX = some_fetch(spec)
    act = {"llama": F.silu, "gpt_neox": F.gelu}.get(family, lambda x: F.gelu(x, approximate="tanh"))
    m = segments(spec, fetched_BX[0], 1)

    def row(r, u):
        return (
            act(m["gate"][r] @ u) * (m["up"][r] @ u) * m["down"][r]
            if "gate" in m
            else act(m["up"][r] @ u) * m["down"][r]
        )

    wanted = [sum(row(r, u) for r in range(3)) for u in HIDDEN[0]]
    torch.testing.assert_close(added(model, spec, fetched_BX, "mlp", HIDDEN), torch.stack(wanted), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora_qk", "lora_vo", "lora_ffn"])
def test_lora_is_two_b_a_at_each_of_its_sites(family, kind):
    model = model_of(family)
    spec = spec_of(model, kind, widths=(3,))
    fetched_BX = some_fetch(spec)
    parts = segments(spec, fetched_BX[0], 1)
    for site in {name.split(".")[0] for name in parts}:
        a, b = parts[f"{site}.a"], parts[f"{site}.b"]
        inputs = torch.randn(1, 5, a.shape[1], generator=torch.Generator().manual_seed(9))
        wanted = torch.stack([2 * sum(b[r] * (a[r] @ u) for r in range(3)) for u in inputs[0]])
        torch.testing.assert_close(added(model, spec, fetched_BX, site, inputs), wanted, atol=1e-4, rtol=1e-4)


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


def test_sizes_are_the_papers():
    model = model_of("llama")
    sizes = {kind: spec_of(model, kind, widths=(1,)).block_size(1) // 2 for kind in KINDS}
    d, ffn, kv = 32, 48, 16
    assert sizes["ffn"] == 3 * d
    assert sizes["lora_qk"] == sizes["lora_vo"] == (d + d) + (d + kv)
    assert sizes["lora_ffn"] == 3 * (d + ffn)
    assert sizes["kv"] == 2 * kv


@pytest.mark.parametrize("kind", KINDS)
def test_new_blocks_differ_and_are_half_zero(kind):
    spec = spec_of(model_of("llama"), kind)
    blocks_NX = new_blocks(spec, 1, 3, torch.Generator().manual_seed(1))
    assert torch.equal(blocks_NX, new_blocks(spec, 1, 3, torch.Generator().manual_seed(1)))
    assert not torch.equal(blocks_NX[0], blocks_NX[1])
    for part in segments(spec_of(model_of("llama"), kind, widths=(4,)), blocks_NX[0], 1).items():
        zero = part[0].endswith(".b") or part[0] in ("down", "value")
        assert bool((part[1] == 0).all()) == zero
        assert zero or part[1].std() > 0.01


@pytest.mark.parametrize("widths", [((4, 4), (2, 2)), ((0, 3), (1, 5)), ((3, 0), (0, 0))])
@pytest.mark.parametrize("kind", KINDS)
def test_split_undoes_join_and_rows_of_all_levels_lie_together(kind, widths):
    spec = spec_of(model_of("llama"), kind, widths=widths)
    levels = [torch.arange(spec.block_size(n)).repeat(2, 1) + 10_000 * n for n in (1, 2)]
    joined = spec.join(levels)
    assert joined.shape == (2, spec.fetch_size)
    assert sum(spec.layer_sizes()) == spec.fetch_size
    for level, again in zip(levels, spec.split(joined), strict=True):
        assert torch.equal(level, again)
    first, size = next(iter(spec.segments.items()))
    one, two = (width[1] * size for width in widths)
    start = spec.layer_sizes()[0]
    got = joined[0, start : start + one + two]
    assert (got[:one] < 20_000).all(), first
    assert (got[one:] >= 20_000).all(), first


def test_a_spec_survives_json():
    spec = spec_of(model_of("gemma3"), "kv", widths=((1, 2), (0, 4)))
    assert type(spec).from_dict(spec.to_dict()) == spec
