"""Opacus' hooks: gradients of each sequence, and nothing left of the hooks."""

import numpy as np
import pytest
import torch

from fedmem.errors import UsageError
from fedmem.memory.block import make_shared_source
from fedmem.privacy.opacus import hooked
from tests.privacy.engines import engine_sum
from tests.privacy.models import D_MODEL, LAYERS, anchor, sequences, spec, warm_block


def test_the_engine_opacus_does_ffn_only():
    with pytest.raises(UsageError, match="engine fused"):
        engine_sum(anchor(), None, sequences([1]), np.array([True]), 0.1, engine="opacus", of=spec(kind="kv"))


def test_the_gradient_of_each_sequence_is_that_of_autograd_and_is_taken_once():
    random = torch.Generator().manual_seed(4)
    block_X, hidden_BTD = warm_block(), torch.randn(3, 5, D_MODEL, generator=random)
    with hooked(spec()) as block:
        block.load(block_X)
        outputs = [block.add(layer, "mlp", hidden_BTD, torch.zeros_like(hidden_BTD)) for layer in range(LAYERS)]
        sum(output.square().sum() for output in outputs).backward()
        grads_BX = block.take()
        assert all(weight.grad is None and weight.grad_sample is None for weight in block.parameters())
    for sequence, grad_X in enumerate(grads_BX):
        leaf_X = block_X.clone().requires_grad_()
        source, one_1TD = make_shared_source(spec(), leaf_X), hidden_BTD[sequence][None]
        parts = [source.add(layer, "mlp", one_1TD, torch.zeros_like(one_1TD)) for layer in range(LAYERS)]
        (expected_X,) = torch.autograd.grad(sum(part.square().sum() for part in parts), leaf_X)
        torch.testing.assert_close(grad_X, expected_X, rtol=1e-4, atol=1e-6)


def test_no_hook_and_no_activation_is_left_when_the_context_ends():
    hidden_BTD = torch.ones(2, 3, D_MODEL)
    with hooked(spec()) as block:
        block.load(warm_block())
        block.add(0, "mlp", hidden_BTD, hidden_BTD).sum().backward()
        assert any(module._forward_hooks for module in block.modules())
    for module in block.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not getattr(module, "activations", [])
