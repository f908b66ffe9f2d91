"""The clipped sum of an engine, and the slow oracle: plain autograd on one record at a time."""

import numpy as np
import torch

from fedmem.memory.attach import attach
from fedmem.memory.block import make_shared_source
from fedmem.privacy.dpsgd import clipped_sum
from fedmem.privacy.gradients import RuntimeOptions, frozen, per_record
from fedmem.privacy.grid import Grid
from fedmem.training.sequences import readable, token_losses
from tests.privacy.models import LENGTH, spec

PER_RECORD = [1, 3, 1, 7, 2, 1]


def engine_sum(model, block_X, data, chosen, clip, micro_batch=4, bf16=False, engine="fused", of=None):
    """The clipped sum on a grid that is much finer than it has to be, decoded: float64."""
    runtime, grid = RuntimeOptions(micro_batch, bf16, engine), Grid.fitting(clip, 1e-6, (of or spec()).fetch_size, 1000)
    with frozen(model), per_record(model, attach(model), of or spec(), data, runtime) as gradients:
        cells_X = clipped_sum(gradients, block_X, data, chosen, grid).cells_X
    assert cells_X.dtype == torch.int64
    return cells_X.double() * grid.spacing


def one_record_at_a_time(model, block_X, data, chosen, clip, of=None):
    """The oracle: plain autograd on one record, no hooks, no batch of records."""
    memory, leaf_X = attach(model), block_X.clone().requires_grad_()
    total_X = torch.zeros_like(block_X)
    for record in np.flatnonzero(chosen):
        numbers = np.flatnonzero(data.record_N == record)
        shared = [data.shared(numbers)] if data.shared else []
        with memory.using(*shared, make_shared_source(of or spec(), leaf_X)):
            loss, _ = token_losses(model(readable(data.tokens_NT[numbers])).logits, data.tokens_NT[numbers])
        (grad_X,) = torch.autograd.grad(loss.sum() / LENGTH, leaf_X)
        total_X += grad_X * min(1.0, clip / float(grad_X.double().norm()))
    memory.detach()
    return total_X


def gap(left_X, right_X):
    return float((left_X.double() - right_X.double()).abs().max())


def norm(values_X):
    return float(values_X.double().norm())
