"""Train one private block by DP-SGD, with anchor and shared rows frozen.

Invariants
- Sampling over records is Poisson. Rate, steps, divisor and sequence length are public, never functions of the records.
- An empty sample is a step like any other: noise alone.
- Noise is added to the clipped sum, before the division by the public divisor. Sampling and noise have separate
  substreams in each step.
- No gradient is computed for the anchor or for shared rows, and neither changes.
- Losses, norms and figures of single records neither leave this module nor reach a log. `progress` gets step numbers.
- The sum is the same, to float rounding, for every micro-batch size and both engines.
- A training that resumes from a `State` gives the same bytes as one without a break. Every step draws from its own
  substream. The steps before the break count against the charge.

An engine gives the gradient of each sequence (`fedmem.privacy.gradients`). Sampling, clipping, noise and accounting are
ours.

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
"""Gets the number of steps taken and the number of all steps, after each step."""


@dataclass(frozen=True)
class State:
    """The state of a training after `step` steps: the block and Adam's two moments, each `[X]`, float32.

    It is as private as the key of the run, and is sealed under a key derived from it. It is never released, logged or
    compared.
    """

    step: int
    block_X: Tensor = field(repr=False)
    first_X: Tensor = field(repr=False)
    second_X: Tensor = field(repr=False)


Watch = Callable[[State], None]
"""Gets the state after each step. The state shares memory with the training. An error that it raises ends it."""


@dataclass(frozen=True)
class Optimiser:
    """The settings of Adam on the noisy sum. Adam is post-processing, so it costs no privacy; its settings are public.

    The learning rate falls linearly from `lr` to `lr * final`. Large first steps move far in the few steps that a small
    epsilon allows, and small last steps average the noise. With beta2 0.99 the second moment settles within a run.
    """

    lr: float = 3e-2
    final: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step`, counted from 0, out of `steps`."""
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
    """Train a block for `plan.steps` steps.

    Guarantees: if the key of the stream is unknown, the result is (plan.epsilon(), plan.delta)-DP for adding or
    removing one record [Abadi et al. 2016, algorithm 1, with a public divisor].

    Args:
        model: the anchor; it is frozen during the training.
        memory: the memory that is attached to the anchor.
        spec: shape of the block.
        start_X: the block to start from.
        data: the private records, as sequences.
        plan: the settings that decide the privacy.
        stream: the random stream of this run; never use one twice for different data.
        optimiser: settings of Adam.
        runtime: settings of speed and memory.
        meter: counts the steps against the charge in the ledger; by default against the spend of the plan.
        progress: gets the number of steps after each step.
        state: the state of this training (same data, plan and stream) to resume from.
        watch: gets the state after each step.

    Returns:
        The trained block `[X]`, in the dtype of `start_X`.

    Raises:
        BudgetExceeded: the charge does not cover the next step; the step is not taken.
        UsageError: the engine cannot train this kind of block.
    """
    settings, runtime = optimiser or Optimiser(), runtime or RuntimeOptions()
    meter, done = meter or Meter(plan.spend), state.step if state else 0
    block = nn.Parameter((state.block_X if state else start_X).detach().clone())
    adam = _start_adam(block, settings, state)
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


def _start_adam(block: nn.Parameter, settings: Optimiser, state: State | None) -> torch.optim.Adam:
    adam = torch.optim.Adam([block], lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    if state:
        moments = {"exp_avg": state.first_X.clone(), "exp_avg_sq": state.second_X.clone()}
        adam.state[block] = {"step": torch.tensor(float(state.step)), **moments}
    return adam


def add_noise(clipped: ClippedSum, noise_multiplier: float, stream: PrivacyStream) -> list[Tensor]:
    """Return the sum with Gaussian noise on every coordinate, of std `noise_multiplier * sensitivity`.

    Guarantees: one Gaussian mechanism of that noise multiplier (Dwork and Roth 2014, theorem A.1). Each coordinate
    has a draw of its own.

    Args:
        clipped: the clipped sum, with its sensitivity.
        noise_multiplier: noise std divided by the sensitivity, finite and at least 0.
        stream: the stream of the draws.

    Returns:
        The noisy sum, one tensor for each parameter.
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
    """Return the sum of the clipped gradients of the chosen records, as one tensor `[X]`.

    Memory: a gradient of each sequence of a micro-batch, and one sum, whatever the length of a record.

    Args:
        gradients: the engine.
        block_X: the block.
        data: all records.
        chosen_R: True for each chosen record.
        clip: the clip norm.
        micro_batch: number of sequences at a time.
    """
    total = ClippedSum.zero([block_X], clip)
    for group in group_by_record(np.flatnonzero(chosen_R[data.record_N]), data.record_N, micro_batch):
        if len(group) == 1:
            total += gradients.book(block_X, group[0]).clipped(data.record_N[group[0]], clip)
        else:
            # One after the other: a list of the gradients of a long record would grow with its length.
            record_X = reduce(torch.add, (gradients.book(block_X, numbers_B).summed() for numbers_B in group))
            total += clip_summed([record_X[None]], clip)
    return total


def group_by_record(
    numbers: NDArray[np.int64], record_N: NDArray[np.int64], micro_batch: int
) -> Iterator[Sequence[NDArray[np.int64]]]:
    """Group sequence numbers into micro-batches, without splitting a short record.

    Args:
        numbers: numbers of the chosen sequences, sorted.
        record_N: the record of each sequence, sorted.
        micro_batch: sequences in a micro-batch, at most.

    Yields:
        One micro-batch of complete records; or, for a record longer than a micro-batch, the list of its micro-batches.
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
