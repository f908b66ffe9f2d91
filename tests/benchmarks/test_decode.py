"""The decoding benchmark's loop: greedy, with a cache, and the same tokens however the fetch is in use."""

import pytest
import torch

from benchmarks.decode import decode
from fedmem.anchor.presets import new_anchor
from fedmem.memory.attach import attach
from fedmem.memory.block import make_source
from fedmem.memory.materialise import materialise
from fedmem.memory.sites import spec_for

PROMPT = torch.tensor([[5, 9, 2, 7]])


@pytest.fixture(scope="module")
def model():
    return new_anchor("nano", 64, 0).eval()


@torch.no_grad()
def slow(model, count):
    """Without a cache: the whole text again for each token."""
    tokens = PROMPT
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    return tokens[:, PROMPT.shape[1] :]


def test_the_loop_decodes_greedily(model):
    assert torch.equal(decode(model, PROMPT, 12), slow(model, 12))


def test_memory_and_materialised_model_give_the_same_tokens_and_others_than_the_anchor(model):
    spec = spec_for(model, "ffn", 2, (8, 4))
    fetched_X = torch.randn(spec.fetch_size, generator=torch.Generator().manual_seed(1))
    plain, memory = materialise(model, spec, fetched_X), attach(model)
    with memory.using(make_source(spec, fetched_X[None])):
        found = decode(model, PROMPT, 12)
        assert torch.equal(found, slow(model, 12))
    assert torch.equal(found, decode(plain, PROMPT, 12))
    with memory.using():
        assert not torch.equal(found, decode(model, PROMPT, 12))
    memory.detach()
