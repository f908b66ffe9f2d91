"""Kinds of memory by name, and the sizes of their rows [docs/method.md, §2]."""

import pytest
import torch

from fedmem.errors import UsageError
from fedmem.memory.kinds import kind_named
from tests.memory.models import KINDS, model_of, spec_of


def test_sizes_are_the_papers():
    model = model_of("llama")
    sizes = {kind: spec_of(model, kind, widths=(1,)).block_size(1) // 2 for kind in KINDS}
    d, ffn, kv = 32, 48, 16
    assert sizes["ffn"] == 3 * d
    assert sizes["lora_qk"] == sizes["lora_vo"] == (d + d) + (d + kv)
    assert sizes["lora_ffn"] == 3 * (d + ffn)
    assert sizes["kv"] == 2 * kv


def test_an_unknown_kind_names_those_that_there_are():
    with pytest.raises(UsageError, match=", ".join(KINDS)):
        kind_named("ia3")


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_the_same_for_every_width_and_start_fills_them(kind):
    spec = spec_of(model_of("llama"), kind)
    for segment, size in spec.segments.items():
        rows_NRX = torch.full((2, 3, size), torch.nan)
        kind_named(kind).start(segment, rows_NRX, spec.shape, torch.Generator().manual_seed(0))
        assert rows_NRX.isfinite().all()
