"""Train one private block by DP-SGD, with anchor and shared rows frozen.

Invariants
- Sampling over records is Poisson. Rate, steps, divisor and sequence length are public, never functions of the records.
- An empty sample is a step like any other: noise alone.
- The sum over records is in integers of a public grid, and so is the noise. It is added before anything is decoded.
  The division by the public divisor, and all after it, is post-processing.
- The gradient of a record is computed with no other record in the batch, so its bits do not depend on others.
- Sampling and noise have separate substreams in each step.
- No gradient is computed for the anchor or for shared rows, and neither changes.
- Losses, norms and figures of single records neither leave this module nor reach a log. `progress` gets step numbers.
- The sum is the same, to float rounding, for every micro-batch size and both engines. Records of up to a micro-batch
  of sequences are the same to the last cell for every micro-batch size.
- A training that resumes from a `State` gives the same bytes as one without a break. Every step draws from its own
  substream. The steps before the break count against the charge.

An engine gives the gradient of each record (`fedmem.privacy.gradients`). Sampling, clipping, noise and accounting are
ours.

Shapes: R records, X values of the block.

    block_X = train_block(model, attach(model), spec, new_block_X, data, plan, stream)
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedmem.memory.attach import Memory
from fedmem.memory.spec import MemorySpec
from fedmem.privacy.clip import CellSum
from fedmem.privacy.gradients import Gradients, PrivateSequences, RuntimeOptions, frozen, per_record
from fedmem.privacy.grid import Grid
from fedmem.privacy.ledger import Meter
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.rounded_gaussian import rounded_gaussian
from fedmem.privacy.stream import PrivacyStream

Progress = Callable[[int, int], None]
"""Gets the number of steps taken and the number of all steps, after each step."""


@dataclass(frozen=True)
class State:
    """The state of a training after some steps. Tensors are `[X]`, float32.

    It is as private as the key of the run, and is sealed under a key derived from it. It is never released, logged or
    compared.

    Attributes:
        step: number of steps done.
        block_X: the block.
        first_X: Adam's first moment.
        second_X: Adam's second moment.
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

    Attributes:
        lr: learning rate of the first step, above 0.
        final: factor on `lr` after the last step.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        eps: added to the root of the second moment.
    """

    lr: float = 3e-2
    final: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step`, counted from 0, out of `steps`.

        Args:
            step: number of the step, from 0.
            steps: number of steps of the plan, above 0.
        """
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
    removing one record [Abadi et al. 2016, algorithm 1, with a public divisor], in the arithmetic of the machine.

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
        Refused: the plan has no grid for a block of this size; nothing is computed.
        UsageError: the engine cannot train this kind of block.
    """
    grid = plan.grid(spec.fetch_size)
    settings, runtime = optimiser or Optimiser(), runtime or RuntimeOptions()
    meter, done = meter or Meter(plan.spend), state.step if state else 0
    block = nn.Parameter((state.block_X if state else start_X).detach().clone())
    adam = start_adam(block, settings, state)
    for _ in range(done):
        meter.take(plan.sampling_rate, plan.noise_multiplier)
    with frozen(model), per_record(model, memory, spec, data, runtime) as gradients:
        for step in range(done, plan.steps):
            meter.take(plan.sampling_rate, plan.noise_multiplier)
            draws = stream.substream(b"step-%d" % step)
            chosen = draws.substream(b"sample").bernoulli(data.records, plan.sampling_rate)
            clipped = clipped_sum(gradients, block.data, data, chosen, grid)
            noisy_X = add_noise(clipped, plan.noise_multiplier, draws.substream(b"noise"))
            block.grad = noisy_X.double().mul_(grid.spacing / plan.divisor).to(block.dtype)
            adam.param_groups[0]["lr"] = settings.rate(step, plan.steps)
            adam.step()
            if progress:
                progress(step + 1, plan.steps)
            if watch:
                watch(State(step + 1, block.data, adam.state[block]["exp_avg"], adam.state[block]["exp_avg_sq"]))
    return block.data


def start_adam(block: nn.Parameter, settings: Optimiser, state: State | None) -> torch.optim.Adam:
    """Return the optimiser of a block, as it is after the steps of a state.

    Args:
        block: the block, `[X]`.
        settings: its settings.
        state: the state to go on from; None before the first step.
    """
    adam = torch.optim.Adam([block], lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    if state:
        moments = {"exp_avg": state.first_X.clone(), "exp_avg_sq": state.second_X.clone()}
        adam.state[block] = {"step": torch.tensor(float(state.step)), **moments}
    return adam


def add_noise(clipped: CellSum, noise_multiplier: float, stream: PrivacyStream) -> Tensor:
    """Return the sum with rounded Gaussian noise on every value, `[X]` int64, of std `noise_multiplier` clip norms.

    Guarantees: one Gaussian mechanism of that noise multiplier (Dwork and Roth 2014, theorem A.1), rounded, up to the
    error that the accounting adds (`rounded_gaussian`). Each value has a draw of its own.

    Args:
        clipped: the sum over clipped records.
        noise_multiplier: noise std divided by the clip norm, finite and at least 0.
        stream: the stream of the draws.
    """
    noise = rounded_gaussian(stream, len(clipped.cells_X), clipped.grid.std(noise_multiplier))
    return torch.from_numpy(noise).add_(clipped.cells_X)


def clipped_sum(
    gradients: Gradients, block_X: Tensor, data: PrivateSequences, chosen_R: NDArray[np.bool_], grid: Grid
) -> CellSum:
    """Return the sum over the clipped gradients of the chosen records, in cells.

    Guarantees: for data that differ in one record, the sums differ by that record's vector exactly, and by nothing if
    it is not chosen. Its norm is at most `grid.cells`.

    Memory: the gradient of one record, and one sum.

    Args:
        gradients: the engine.
        block_X: the block.
        data: all records.
        chosen_R: True for each chosen record.
        grid: the public grid.
    """
    total = CellSum.zero(block_X.numel(), grid)
    starts_R = np.searchsorted(data.record_N, np.arange(data.records + 1))
    for record in np.flatnonzero(chosen_R):
        numbers = np.arange(starts_R[record], starts_R[record + 1])
        if len(numbers):
            total.add(gradients(block_X, numbers))
    return total
