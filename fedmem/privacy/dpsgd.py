"""DP-SGD of one private block: anchor and shared rows frozen, privacy by our own arithmetic.

Invariants
- Poisson sampling over records; rate, steps, divisor and sequence length are public, never functions of the records.
- An empty sample is a step like any other: noise alone.
- Noise is added to the clipped sum, before the public divisor; sampling and noise have their own substream per step.
- No gradient is computed for the anchor or for shared rows, and they are left as they were.
- Losses, norms and anything per record neither leave this module nor reach a log; `progress` gets step numbers.
- The sum is the same, to float rounding, for every micro-batch size and both engines.
- A training that goes on from a `State` ends in the bytes of one that was never cut: every step draws from its own
  substream, and the steps before the cut count against the charge.

Per-sequence gradients come from an engine (`fedmem.privacy.gradients`); sampling, clip, noise and accounting are here.

Shapes: N sequences, B sequences of a micro-batch, R records, X values of the block.

    block_X = train_block(model, attach(model), spec, new_block_X, data, plan, stream)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmem.memory.attach import Memory
from fedmem.memory.spec import MemorySpec
from fedmem.privacy.clip import ClippedSum, clip_summed
from fedmem.privacy.gradients import Gradients, PrivateSequences, RuntimeOptions, frozen, per_sequence
from fedmem.privacy.ledger import Meter
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class State:
    """Where a training stands after `step` steps: the block and Adam's two moments, float32 [X]. As private as the
    run's key, with which it is sealed: never released, logged or compared."""

    step: int
    block_X: Tensor = field(repr=False)
    first_X: Tensor = field(repr=False)
    second_X: Tensor = field(repr=False)


Watch = Callable[[State], None]
"""Gets the state after each step; it shares memory with the training. What it raises, ends the training."""


@dataclass(frozen=True)
class Optimiser:
    """Adam on the noisy sum: post-processing, so it costs no privacy; public settings all the same.

    The learning rate falls in a straight line from `lr` to the share `final` of it: large first steps travel far in the
    few steps that a small epsilon allows, and small last ones average the noise away. beta2 0.99 settles within a run.
    """

    lr: float = 3e-2
    final: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step`, from 0, out of `steps`."""
        return self.lr * (1 - (1 - self.final) * step / steps)


def train_block(
    model: PreTrainedModel,
    memory: Memory,
    spec: MemorySpec,
    start_X: Tensor,
    data: PrivateSequences,
    plan: PrivacyPlan,
    stream: PrivacyStream,
    *,
    optimiser: Optimiser | None = None,
    runtime: RuntimeOptions | None = None,
    meter: Meter | None = None,
    progress: Progress | None = None,
    state: State | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Train a block from `start_X` for `plan.steps` steps and return its `block_X`, float32.

    `meter` holds what the ledger was charged; without one, what the plan costs. `state` is where this very training,
    of the same data, plan and stream, was cut.

    Guarantees: with the stream's key unknown the result is (plan.epsilon(), plan.delta)-DP for adding or removing
    one record [Abadi et al. 2016, algorithm 1, with a public divisor]. Raises BudgetExceeded before the first step
    that the charge does not cover.
    """
    settings, runtime = optimiser or Optimiser(), runtime or RuntimeOptions()
    meter, done = meter or Meter(plan.spend), state.step if state else 0
    block = nn.Parameter((state.block_X if state else start_X).detach().clone())
    adam = _adam(block, settings, state)
    for _ in range(done):
        meter.take(plan.sampling_rate, plan.noise_multiplier)
    with frozen(model), per_sequence(model, memory, spec, data, runtime) as gradients:
        for step in range(done, plan.steps):
            meter.take(plan.sampling_rate, plan.noise_multiplier)
            draws = stream.substream(b"step-%d" % step)
            chosen = draws.substream(b"sample").bernoulli(data.records, plan.sampling_rate)
            clipped = clipped_sum(gradients, block.data, data, chosen, plan.clip, runtime.micro_batch)
            (noisy,) = add_noise(clipped, plan.noise_multiplier, draws.substream(b"noise"))
            block.grad = (noisy / plan.divisor).to(block.dtype)
            adam.param_groups[0]["lr"] = settings.rate(step, plan.steps)
            adam.step()
            if progress:
                progress(step + 1, plan.steps)
            if watch:
                watch(State(step + 1, block.data, adam.state[block]["exp_avg"], adam.state[block]["exp_avg_sq"]))
    return block.data


def _adam(block: nn.Parameter, settings: Optimiser, state: State | None) -> torch.optim.Adam:
    adam = torch.optim.Adam([block], lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    if state:
        moments = {"exp_avg": state.first_X.clone(), "exp_avg_sq": state.second_X.clone()}
        adam.state[block] = {"step": torch.tensor(float(state.step)), **moments}
    return adam


def add_noise(clipped: ClippedSum, noise_multiplier: float, stream: PrivacyStream) -> list[Tensor]:
    """The sum plus Gaussian noise of std `noise_multiplier * sensitivity` on every coordinate, one draw for each.

    Guarantees: one Gaussian mechanism of that noise multiplier (Dwork and Roth 2014, theorem A.1).
    """
    size = sum(value.numel() for value in clipped.value)
    noise = torch.from_numpy(stream.normal(size, noise_multiplier * clipped.sensitivity))
    parts = torch.split(noise, [value.numel() for value in clipped.value])
    return [value + part.view(value.shape).to(value) for value, part in zip(clipped.value, parts, strict=True)]


def clipped_sum(
    gradients: Gradients,
    block_X: Tensor,
    data: PrivateSequences,
    chosen_R: NDArray[np.bool_],
    clip: float,
    micro_batch: int,
) -> ClippedSum:
    """Sum of the clipped gradients of the chosen records, one tensor `[X]`.

    Memory: what a gradient of each sequence of a micro-batch takes, and one sum, however long a record is.
    """
    total = ClippedSum.zero([block_X], clip)
    for group in groups(np.flatnonzero(chosen_R[data.record_N]), data.record_N, micro_batch):
        if len(group) == 1:
            total += gradients.book(block_X, group[0]).clipped(data.record_N[group[0]], clip)
        else:
            # One after the other: a list of the parts of a long record would grow with it.
            record_X = reduce(torch.add, (gradients.book(block_X, numbers_B).summed() for numbers_B in group))
            total += clip_summed([record_X[None]], clip)
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
