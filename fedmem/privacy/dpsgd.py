"""DP-SGD of one private block: anchor and shared rows frozen, privacy by our own arithmetic.

Invariants
- Poisson sampling over records; rate, steps, divisor and sequence length are public, never functions of the records.
- An empty sample is a step like any other: noise alone.
- Noise is added to the clipped sum, before the public divisor; sampling and noise have their own substream per step.
- No gradient is computed for the anchor or for shared rows, and they are left as they were.
- Losses, norms and anything per record neither leave this module nor reach a log; `progress` gets step numbers.
- The sum is the same, to float rounding, for every micro-batch size.

Opacus' hooks give per-sequence gradients; sampling, clip, noise and accounting are ours.

Shapes: N sequences, T tokens (public length), B sequences of a micro-batch, X values of the block.

    block_X = train_block(model, attach(model), block, data, plan, stream)
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmem.memory.attach import Memory
from fedmem.memory.block import BlockModule
from fedmem.memory.kinds import Source
from fedmem.privacy.clip import ClippedSum, clip_summed, sum_by_record
from fedmem.privacy.ledger import Meter
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream
from fedmem.training.sequences import readable, token_losses, trim

Fetch = Callable[[NDArray[np.int64]], Source]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PrivateSequences:
    """Records as sequences of public length: `tokens_NT` (int64, right-padded with `PAD`) and the record of each.

    `record_N` (int64) is sorted and counts records from 0 to `records` - 1; `shared` gives the rows that the
    shared bank answers with, as a memory source for sequence numbers.
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
class Optimiser:
    """Adam on the noisy sum: post-processing, so it costs no privacy; public settings all the same.

    lr 1e-2: with a clip norm near 0.1 and M3 = 0 at the start a smaller step does not travel far enough in the
    few steps that a small epsilon allows. beta2 0.99 settles within such a run.
    """

    lr: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8


@dataclass(frozen=True)
class RuntimeOptions:
    """Speed and memory only: `micro_batch` sequences at a time; `bf16` autocast of the forward pass."""

    micro_batch: int = 16
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ValueError("a micro-batch holds at least one sequence")


def train_block(
    model: PreTrainedModel,
    memory: Memory,
    block: BlockModule,
    data: PrivateSequences,
    plan: PrivacyPlan,
    stream: PrivacyStream,
    *,
    optimiser: Optimiser | None = None,
    runtime: RuntimeOptions | None = None,
    meter: Meter | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Train `block` in place for `plan.steps` steps and return its `block_X`, float32.

    `meter` holds what the ledger was charged; without one, what the plan costs.

    Guarantees: with the stream's key unknown the result is (plan.epsilon(), plan.delta)-DP for adding or removing
    one record [Abadi et al. 2016, algorithm 1, with a public divisor]. Raises BudgetExceeded before the first step
    that the charge does not cover.
    """
    settings, runtime = optimiser or Optimiser(), runtime or RuntimeOptions()
    meter = meter or Meter(plan.spend)
    adam = torch.optim.Adam(
        block.parameters(), lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps
    )
    with frozen(model), per_sequence_gradients(block):
        for step in range(plan.steps):
            meter.take(plan.sampling_rate, plan.noise_multiplier)
            draws = stream.substream(b"step-%d" % step)
            chosen = draws.substream(b"sample").bernoulli(data.records, plan.sampling_rate)
            clipped = clipped_sum(model, memory, block, data, chosen, plan.clip, runtime)
            noisy = add_noise(clipped, plan.noise_multiplier, draws.substream(b"noise"))
            for parameter, total in zip(block.parameters(), noisy, strict=True):
                parameter.grad = (total / plan.divisor).to(parameter.dtype)
            adam.step()
            adam.zero_grad(set_to_none=True)
            if progress:
                progress(step + 1, plan.steps)
    return block.values()


def add_noise(clipped: ClippedSum, noise_multiplier: float, stream: PrivacyStream) -> list[Tensor]:
    """The sum plus Gaussian noise of std `noise_multiplier * sensitivity` on every coordinate, one draw for each.

    Guarantees: one Gaussian mechanism of that noise multiplier (Dwork and Roth 2014, theorem A.1).
    """
    size = sum(value.numel() for value in clipped.value)
    noise = torch.from_numpy(stream.normal(size, noise_multiplier * clipped.sensitivity))
    parts = torch.split(noise, [value.numel() for value in clipped.value])
    return [value + part.view(value.shape).to(value) for value, part in zip(clipped.value, parts, strict=True)]


def clipped_sum(
    model: PreTrainedModel,
    memory: Memory,
    block: BlockModule,
    data: PrivateSequences,
    chosen_R: NDArray[np.bool_],
    clip: float,
    runtime: RuntimeOptions,
) -> ClippedSum:
    """Sum of the clipped gradients of the chosen records; needs `per_sequence_gradients(block)` around it.

    Memory: one block per sequence of a micro-batch, however long a record is.
    """
    parameters = list(block.parameters())
    total = ClippedSum.zero(parameters, clip)
    for group in groups(np.flatnonzero(chosen_R[data.record_N]), data.record_N, runtime.micro_batch):
        grads: list[Tensor] = []
        for numbers_B in group:
            _backward(model, memory, block, data, numbers_B, runtime.bf16)
            _, local_B = np.unique(data.record_N[numbers_B], return_inverse=True)
            record_B = torch.from_numpy(local_B)
            records = int(local_B.max()) + 1
            part = [sum_by_record(_take(p), record_B, records) for p in parameters]
            grads = [a + b for a, b in zip(grads, part, strict=True)] if grads else part
        total += clip_summed(grads, clip)
    return total


def groups(
    numbers: NDArray[np.int64], record_N: NDArray[np.int64], micro_batch: int
) -> Iterator[Sequence[NDArray[np.int64]]]:
    """Cut sequence numbers into groups of whole records, each a list of micro-batches.

    A group is one micro-batch of whole records, or the several micro-batches of one record that is longer.
    """
    starts = np.flatnonzero(np.diff(record_N[numbers], prepend=-1))
    pending: list[NDArray[np.int64]] = []
    for record in np.split(numbers, starts[1:]) if len(numbers) else []:
        if pending and sum(map(len, pending)) + len(record) > micro_batch:
            yield [np.concatenate(pending)]
            pending = []
        if len(record) > micro_batch:
            yield [record[i : i + micro_batch] for i in range(0, len(record), micro_batch)]
        else:
            pending.append(record)
    if pending:
        yield [np.concatenate(pending)]


def _backward(
    model: PreTrainedModel,
    memory: Memory,
    block: BlockModule,
    data: PrivateSequences,
    numbers_B: NDArray[np.int64],
    bf16: bool,
) -> None:
    """Leave per-sequence gradients of the micro-batch's loss on the block's parameters."""
    tokens_BT = trim(data.tokens_NT[numbers_B])
    shared = [data.shared(numbers_B)] if data.shared else []
    with memory.using(*shared, block), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss_BT, _ = token_losses(model(input_ids=readable(tokens_BT), use_cache=False).logits, tokens_BT)
    # The public length, not the number of tokens, divides: a record's gradient depends on that record alone.
    loss = loss_BT.sum() / data.tokens_NT.shape[1]
    with warnings.catch_warnings():
        # The first layer's input is frozen, as it should be; torch says so at each backward pass.
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        loss.backward()


def _take(parameter: nn.Parameter) -> Tensor:
    grads_B: Tensor = vars(parameter)["grad_sample"]
    vars(parameter)["grad_sample"] = None
    parameter.grad = None
    return grads_B.detach()


@contextmanager
def per_sequence_gradients(block: BlockModule) -> Iterator[None]:
    """Opacus' hooks on the block's linear maps; they and every attribute they set are gone afterwards."""
    was_training = block.training
    hooks = GradSampleModule(block.train(), loss_reduction="sum", strict=True)
    try:
        yield
    finally:
        hooks.remove_hooks()
        for parameter in block.parameters():
            for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
        for module in block.modules():
            for name in ("activations", "max_batch_len"):
                if hasattr(module, name):
                    delattr(module, name)
        block.train(was_training)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No gradient and no dropout for the anchor inside; its flags are as before afterwards."""
    was_training, flags = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        model.train(was_training)
