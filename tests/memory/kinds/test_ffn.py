"""FFN memory against its formula, one row and one token at a time [docs/method.md, §2]."""

import pytest
import torch
from torch.nn import functional as F

from tests.memory.models import effect, model_of, segments, some_fetch, spec_of

HIDDEN = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(7))


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
    torch.testing.assert_close(
        effect(model, spec, fetched_BX, "mlp", HIDDEN), torch.stack(wanted), atol=2e-5, rtol=1e-4
    )


def test_a_layer_without_rows_is_left_as_it_is():
    model = model_of("llama")
    spec = spec_of(model, "ffn", widths=((0, 3),))
    assert not effect(model, spec, some_fetch(spec), "mlp", HIDDEN, layer=0).any()
    assert effect(model, spec, some_fetch(spec), "mlp", HIDDEN, layer=1).any()
