"""Anchors from presets: seeded, of the stated size, and without a side effect."""

import pytest
import torch

from fedmem.anchor.presets import PRESETS, config, new_anchor
from fedmem.errors import UsageError


def test_same_seed_same_bytes_and_no_trace_in_the_global_generator():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    first, second = new_anchor("nano", 300, seed=5), new_anchor("nano", 300, seed=5)
    assert torch.equal(torch.rand(1), wanted)
    other = new_anchor("nano", 300, seed=6)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(("preset", "millions"), [("pico", 0.09), ("nano", 0.24), ("tiny", 1.1), ("small", 4.3)])
def test_sizes(preset, millions):
    with torch.device("meta"):
        model = new_anchor(preset, 2048 if preset != "small" else 4096, 0)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize(("preset", "paper"), [("160m", 163_510_016), ("410m", 411_665_408), ("1.4b", 1_439_893_504)])
def test_sizes_are_the_papers(preset, paper):
    with torch.device("meta"):
        model = new_anchor(preset, 50_432, 0)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(paper, rel=0.002)


def test_head_is_tied_and_there_are_no_biases():
    model = new_anchor("nano", 300, 0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UsageError, match=", ".join(PRESETS)):
        config("huge", 300)
