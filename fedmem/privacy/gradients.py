"""Compute the gradient of a private block for one record, by one of two engines.

- `fused`: plain backward passes over the sequences of the record, which share the block.
- `opacus`: Opacus' hooks on linear maps that hold the block. It trains FFN blocks only, and checks the other engine.

Invariants
- A forward pass holds sequences of one record only. So the bits of a record's gradient are a function of the record,
  the block and public settings: kernels choose their blocking by shapes, and the shapes come from this record alone.
- No gradient is computed for the anchor or for shared rows, and neither changes.
- Gradients are at least float32, whatever the precision of the forward pass.

Shapes: N sequences, T tokens (public length), B sequences of a record, X values of the block.

    with frozen(model), per_record(model, memory, spec, data, RuntimeOptions()) as gradients:
        grad_X = gradients(block_X, np.array([0, 1, 2]))
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from fedmem.memory.attach import Memory
from fedmem.memory.block import make_shared_source
from fedmem.memory.kinds import ActiveMemory
from fedmem.memory.kinds.product import gathered
from fedmem.memory.spec import MemorySpec
from fedmem.training.sequences import readable, token_losses, trim

Fetch = Callable[[NDArray[np.int64]], ActiveMemory]


Gradients = Callable[[Tensor, NDArray[np.int64]], Tensor]
"""An engine in use: the gradient `[X]` of a block `[X]` for one record, by the numbers of all its sequences `[B]`.

The result is valid until the next call, which writes into the same buffer.
"""


@dataclass(frozen=True)
class PrivateSequences:
    """Private records as sequences of public length.

    Attributes:
        tokens_NT: token ids, int64, right-padded with `PAD`.
        record_N: the record of each sequence, int64, sorted, from 0 to `records` - 1.
        records: number of records.
        shared: gives the shared blocks for sequence numbers, as a memory source; None without a shared bank.

    Raises:
        ValueError: the sequences are not sorted by record, or one names no record.
    """

    tokens_NT: Tensor
    record_N: NDArray[np.int64]
    records: int
    shared: Fetch | None = None

    def __post_init__(self) -> None:
        ordered = bool(np.all(np.diff(self.record_N) >= 0))
        inside = not len(self.record_N) or (self.record_N[0] >= 0 and self.record_N[-1] < self.records)
        if len(self.tokens_NT) != len(self.record_N) or not ordered or not inside:
            raise ValueError("sequences must be sorted by record, and each must name one of the records")


@dataclass(frozen=True)
class RuntimeOptions:
    """The settings of speed and memory; they do not change privacy.

    Attributes:
        micro_batch: number of sequences of a record at a time.
        bf16: run the forward pass under autocast.
        engine: the engine of the gradients.

    Raises:
        ValueError: the micro-batch is below 1.
    """

    micro_batch: int = 16
    bf16: bool = False
    engine: Literal["fused", "opacus"] = "fused"

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError("a micro-batch holds at least one sequence")


@contextmanager
def per_record(
    model: PreTrainedModel, memory: Memory, spec: MemorySpec, data: PrivateSequences, runtime: RuntimeOptions
) -> Iterator[Gradients]:
    """Give the engine of `runtime` for blocks of a spec. Use it inside `frozen(model)`.

    Memory: the activations of a micro-batch and the gradient of one record, whatever the length of the record.

    Args:
        model: the frozen anchor.
        memory: the memory that is attached to it.
        spec: shape of the block.
        data: the private records.
        runtime: settings of speed and memory.

    Raises:
        UsageError: the engine cannot train this kind of block.
    """
    if runtime.engine == "opacus":
        from fedmem.privacy.opacus import hooked

        with hooked(spec) as block:

            def by_hooks(block_X: Tensor, numbers_B: NDArray[np.int64], onto_X: Tensor) -> None:
                block.load(block_X)
                batch_loss(model, memory, block, data, numbers_B, runtime.bf16).backward()
                onto_X.add_(block.take().sum(0))

            yield _in_parts(by_hooks, runtime.micro_batch)
        return

    def fused(block_X: Tensor, numbers_B: NDArray[np.int64], onto_X: Tensor) -> None:
        leaf_X = block_X.detach().contiguous().requires_grad_()
        with gathered(lambda w_BIO: _place(w_BIO, leaf_X, onto_X)):
            loss = batch_loss(model, memory, make_shared_source(spec, leaf_X), data, numbers_B, runtime.bf16)
        (rest_X,) = torch.autograd.grad(loss, leaf_X, allow_unused=True)
        if rest_X is not None:
            onto_X.add_(rest_X)

    yield _in_parts(fused, runtime.micro_batch)


def _place(w_BIO: Tensor, leaf_X: Tensor, onto_X: Tensor) -> Tensor | None:
    """Return the values of `onto_X` at the place of a matrix in the block, or None if it is not a part of the block."""
    if w_BIO.untyped_storage().data_ptr() != leaf_X.untyped_storage().data_ptr():
        return None
    offset = int(w_BIO.storage_offset() - leaf_X.storage_offset())
    return onto_X.as_strided(w_BIO.shape[1:], w_BIO.stride()[1:], offset)


def _in_parts(add: Callable[[Tensor, NDArray[np.int64], Tensor], None], micro_batch: int) -> Gradients:
    """Return an engine that adds up the gradients of parts of a long record, in their order, in one buffer."""
    buffers = list[Tensor]()

    def whole(block_X: Tensor, numbers_B: NDArray[np.int64]) -> Tensor:
        if not buffers:
            buffers.append(torch.empty_like(block_X, dtype=torch.promote_types(block_X.dtype, torch.float32)))
        total_X = buffers[0].zero_()
        for start in range(0, len(numbers_B), micro_batch):
            add(block_X, numbers_B[start : start + micro_batch], total_X)
        return total_X

    return whole


def batch_loss(
    model: PreTrainedModel,
    memory: Memory,
    block: ActiveMemory,
    data: PrivateSequences,
    numbers_B: NDArray[np.int64],
    bf16: bool,
) -> Tensor:
    """Return the summed loss of a micro-batch with a block, divided by the public sequence length.

    Args:
        model: the anchor.
        memory: the memory that is attached to it.
        block: the block, as a memory source.
        data: the private records.
        numbers_B: numbers of the sequences.
        bf16: run the forward pass under autocast.
    """
    tokens_BT = trim(data.tokens_NT[numbers_B])
    shared = [data.shared(numbers_B)] if data.shared else []
    with memory.using(*shared, block), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss_BT, _ = token_losses(model(input_ids=readable(tokens_BT), use_cache=False).logits, tokens_BT)
    # Divided by the public length, not by the number of tokens: a record's gradient depends on that record alone.
    return loss_BT.sum() / data.tokens_NT.shape[1]


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Switch gradients and dropout of the anchor off inside the context; restore its flags at the end.

    Args:
        model: the anchor.
    """
    was_training, flags = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        model.train(was_training)
