"""LoRA memory against its formula, one row and one token at a time [docs/method.md, §2]."""

import pytest
import torch

from fedmem.memory.kinds.lora import LoRA, site_sizes
from fedmem.memory.sites import shape_of, sites_of
from tests.memory.models import FAMILIES, effect, model_of, segments, some_fetch, spec_of


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
        torch.testing.assert_close(effect(model, spec, fetched_BX, site, inputs), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sizes_of_a_site_are_those_of_its_linear_map(family):
    model = model_of(family)
    for site, sizes in site_sizes(shape_of(model)).items():
        place = sites_of(model)[0][site]
        inputs = torch.zeros(1, 1, sizes[0])
        output = place.module(inputs)
        assert (place.part(output).flatten(2) if place.part else output).shape[-1] == sizes[1], site


def test_a_site_that_the_anchor_lacks_has_no_rows():
    assert set(LoRA(("gate", "up")).segments(shape_of(model_of("gpt2")))) == {"up.a", "up.b"}
    assert set(LoRA(("gate", "up")).segments(shape_of(model_of("llama")))) == {"gate.a", "gate.b", "up.a", "up.b"}
