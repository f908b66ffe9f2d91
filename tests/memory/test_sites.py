"""The sites and the geometry of every supported family, as their modules have them."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from fedmem.errors import UsageError
from fedmem.memory.attach import attach
from fedmem.memory.sites import SUPPORTED, shape_of, sites_of, spec_for
from tests.memory.models import FAMILIES, model_of


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_its_sites_and_the_geometry_is_that_of_the_config(family):
    model = model_of(family)
    shape = shape_of(model)
    expected = {"mlp", "up", "down", "q", "k", "v", "o", "heads"} | ({"gate"} if shape.gated else set())
    assert [set(sites) for sites in sites_of(model)] == [expected] * 2
    assert (shape.d_model, shape.heads) == (32, 4)
    assert shape.gated == (family not in ("gpt2", "gpt_neox"))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
@torch.no_grad()
def test_query_key_and_value_of_one_fused_map_are_its_parts(family):
    model = model_of(family)
    sites = sites_of(model)[0]
    fused = sites["q"].module(torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)))
    parts = [sites[name].part(fused).flatten(2) for name in "qkv"]
    assert [part.shape[-1] for part in parts] == [32, 32, 32]
    assert torch.equal(torch.cat(parts, dim=-1).sort().values, fused.sort().values)  # each value is in one part


def test_another_architecture_is_refused_by_name():
    sizes = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 8}
    model = OPTForCausalLM(OPTConfig(vocab_size=30, **sizes))
    for look in (shape_of, sites_of, attach, lambda model: spec_for(model, "ffn", 2, (1,))):
        with pytest.raises(UsageError, match=f"'opt'.*{SUPPORTED}"):
            look(model)


@pytest.mark.parametrize("widths", [((1, 2, 3),), ((1,),), ((4, 4), (2,))])
def test_another_number_of_widths_than_layers_is_refused(widths):
    with pytest.raises(UsageError, match="2 layers"):
        spec_for(model_of("llama"), "ffn", 2, widths)
