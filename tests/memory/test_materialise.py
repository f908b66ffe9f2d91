"""A materialised fetch is a plain model of the same family that gives the logits of the attached one."""

import pytest
import torch

from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source
from fedmem.memory.materialise import materialise
from tests.memory.models import FAMILIES, model_of, some_fetch, some_tokens, spec_of


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("widths", [(4, 2), ((0, 3), (5, 1))])
@torch.no_grad()
def test_logits_agree_and_a_file_round_trip_keeps_them(family, widths, tmp_path):
    model, tokens = model_of(family), some_tokens()
    spec, bare = spec_of(model, widths=widths), model(tokens).logits
    fetched_BX, memory = some_fetch(spec), attach(model)
    plain = materialise(model, spec, fetched_BX[0])
    with memory.using(make_shared_source(spec, fetched_BX[0])):
        wanted = model(tokens).logits
    assert type(plain) is type(model)
    assert not torch.allclose(wanted, bare, atol=1e-3)
    torch.testing.assert_close(plain(tokens).logits, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(tokens).logits, bare)
    plain.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(tokens).logits, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_shares_no_storage_with_the_anchor():
    model = model_of("llama")
    spec = spec_of(model)
    plain = materialise(model, spec, some_fetch(spec)[0])
    before = [p.clone() for p in model.parameters()]
    for parameter in plain.parameters():
        parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["kv", "lora_ffn"])
def test_other_kinds_say_what_to_do(kind):
    model = model_of("llama")
    spec = spec_of(model, kind)
    with pytest.raises(UsageError, match="attached"):
        materialise(model, spec, some_fetch(spec)[0])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("is_tied", [True, False])
@torch.no_grad()
def test_a_head_of_its_own_stays_so_whatever_the_configuration_says(family, is_tied, tmp_path):
    model, tokens = model_of(family), some_tokens()
    model.config.tie_word_embeddings = is_tied
    shape = model.lm_head.weight.shape
    model.lm_head.weight = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(3)))
    spec = spec_of(model)
    plain = materialise(model, spec, some_fetch(spec)[0])
    with attach(model).using(make_shared_source(spec, some_fetch(spec)[0])):
        wanted = model(tokens).logits
    torch.testing.assert_close(plain(tokens).logits, wanted, atol=1e-4, rtol=1e-5)
    plain.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(tokens).logits, wanted, atol=1e-4, rtol=1e-5)


def test_a_compiled_model_is_refused():
    model = model_of("llama")
    spec = spec_of(model)
    with pytest.raises(UsageError, match="compiled"):
        materialise(torch.compile(model, backend="eager"), spec, some_fetch(spec)[0])
