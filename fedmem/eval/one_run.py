"""Run the audited training function on canaries, and attack everything that the run releases.

Invariants
- No data of a user is used: anchor, first rows and canaries are made here, from a fixed public seed.
- The run calls `train_block` as the learner does. A hook records the updates that reach the optimiser, and nothing is
  replaced. So the audit sees exactly what is released, with noise and divisor.
- The white-box attack sees every block and every update, and knows every canary. The black-box attack sees the losses
  of the canaries only.
- An attack never sees the coins.

Shapes: M canaries, T tokens, S steps, X values of the block.

    setup = AuditSetup.new(canaries=500)
    trace = setup.run(setup.canaries(included_M), plan, stream)
    scores = attacks(setup, plan, trace)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from fedmem.anchor.presets import Shape, new_anchor
from fedmem.errors import QualityGateFailed
from fedmem.eval.perplexity import sequence_losses
from fedmem.memory.attach import Memory, attach
from fedmem.memory.block import make_source
from fedmem.memory.sites import spec_for
from fedmem.memory.spec import MemorySpec
from fedmem.privacy.dpsgd import train_block
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions, batch_loss, frozen
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

Scores = NDArray[np.float64]
SHAPE, VOCABULARY, WIDTH, LENGTH = Shape(layers=2, d_model=32, ffn=64, heads=2, head_dim=16), 256, 16, 16
SEED, BATCH = 2305, 250
NO_NOISE = 1e-4
"""Variance of the noise, in clip norms, that an attacker assumes who expects no noise."""


@dataclass
class CanaryTrace:
    """The release of a run.

    Attributes:
        blocks_SX: the block before each of the S steps, `[X]` each.
        updates_SX: the update of each step, `[X]` each: the noisy sum over the divisor.
        end_X: the block after the last step.
    """

    blocks_SX: list[Tensor] = field(default_factory=list)
    updates_SX: list[Tensor] = field(default_factory=list)
    end_X: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class AuditSetup:
    """The inputs of an audit, from a public seed.

    Attributes:
        model: a random anchor.
        memory: the memory that is attached to it.
        spec: shape of the block.
        start_X: the first block, with random rows.
        tokens_MT: one random sequence for each canary.
    """

    model: PreTrainedModel
    memory: Memory
    spec: MemorySpec
    start_X: Tensor
    tokens_MT: Tensor

    @classmethod
    def new(cls, canaries: int) -> "AuditSetup":
        """Return the setup for a number of canaries; equal numbers give equal setups.

        Args:
            canaries: number of canaries, at least 1.
        """
        model, generator = new_anchor(SHAPE, VOCABULARY, SEED), torch.Generator().manual_seed(SEED)
        spec = spec_for(model, "ffn", 1, (WIDTH,))
        tokens_MT = torch.randint(1, VOCABULARY, (canaries, LENGTH), generator=generator)
        # Not M3 = 0: canaries whose gradients lie in all rows are farther from each other.
        return cls(model, attach(model), spec, 0.3 * torch.randn(spec.fetch_size, generator=generator), tokens_MT)

    def canaries(self, included_M: NDArray[np.bool_]) -> PrivateSequences:
        """Return the included canaries as private records, one sequence each.

        Args:
            included_M: True for each canary that is included.
        """
        numbers = np.flatnonzero(included_M)
        return PrivateSequences(self.tokens_MT[numbers], np.arange(len(numbers)), len(numbers))

    def run(self, data: PrivateSequences, plan: PrivacyPlan, stream: PrivacyStream) -> CanaryTrace:
        """Train on `data` and record what is released.

        Args:
            data: the private records.
            plan: the public settings.
            stream: decides sampling and noise.

        Raises:
            QualityGateFailed: the number of recorded updates is not the number of steps.
        """
        with watched() as trace:
            runtime = RuntimeOptions(micro_batch=64)
            trace.end_X = train_block(
                self.model, self.memory, self.spec, self.start_X, data, plan, stream, runtime=runtime
            )
        if len(trace.updates_SX) != plan.steps:
            raise QualityGateFailed(
                f"The audit saw {len(trace.updates_SX)} updates of {plan.steps} steps. Steps that depend on the data, "
                "and updates that bypass torch's optimiser, cannot be audited; report a bug."
            )
        return trace

    def losses(self, block_X: Tensor) -> Scores:
        """Return the summed loss in nats of each canary, `[M]`, with the block in use.

        Args:
            block_X: the block.
        """
        return sequence_losses(
            self.model,
            self.tokens_MT,
            self.memory,
            lambda numbers_B: [make_source(self.spec, block_X.expand(len(numbers_B), -1))],
            BATCH,
        )[0]

    def gradients(self, blocks_SX: list[Tensor]) -> Iterator[Tensor]:
        """Yield for each block the gradients `[M, X]` of all canaries.

        Args:
            blocks_SX: the blocks, `[X]` each.
        """
        canaries = self.canaries(np.ones(len(self.tokens_MT), bool))
        parts = np.array_split(np.arange(canaries.records), -(-canaries.records // BATCH))
        with frozen(self.model):
            for block_X in blocks_SX:
                yield torch.cat([self._gradients(block_X, canaries, numbers_B) for numbers_B in parts])

    def _gradients(self, block_X: Tensor, data: PrivateSequences, numbers_B: NDArray[np.int64]) -> Tensor:
        """Return the gradient of each canary, `[B, X]`, from one pass. An attack does not need its last bits."""
        leaf_BX = block_X.expand(len(numbers_B), -1).detach().requires_grad_()
        loss = batch_loss(self.model, self.memory, make_source(self.spec, leaf_BX), data, numbers_B, bf16=False)
        return torch.autograd.grad(loss, leaf_BX)[0]


@contextmanager
def watched() -> Iterator[CanaryTrace]:
    """Record the blocks and updates of every optimiser step inside the `with`, in the yielded trace."""
    trace = CanaryTrace()

    def record_step(optimiser: torch.optim.Optimizer, *_: object) -> None:
        (block,) = optimiser.param_groups[0]["params"]
        trace.blocks_SX.append(block.detach().clone())
        trace.updates_SX.append(block.grad.detach().clone())

    handle = register_optimizer_step_pre_hook(record_step)
    try:
        yield trace
    finally:
        handle.remove()


def attacks(setup: AuditSetup, plan: PrivacyPlan, trace: CanaryTrace) -> dict[str, Scores]:
    """Attack a run.

    Args:
        setup: the setup of the run.
        plan: the public settings of the run.
        trace: everything that the run released.

    Returns:
        Scores `[M]` by attack, greater for canaries that look included. `white_box_product` sums the inner products of
        a canary's clipped gradient with the updates. `white_box_decoded` solves for the sample of each step by least
        squares. `black_box` is the decrease of a canary's loss.
    """
    product_M, decoded_M = torch.zeros(len(setup.tokens_MT)), torch.zeros(len(setup.tokens_MT))
    for update_X, grads_MX in zip(trace.updates_SX, setup.gradients(trace.blocks_SX), strict=True):
        unit_MX = grads_MX / grads_MX.norm(dim=1, keepdim=True).clamp(min=plan.clip)
        # In clip norms, minus the expected sum, in which coin and sampling rate weight each canary.
        excess_X = update_X * plan.divisor / plan.clip - plan.sampling_rate / 2 * unit_MX.sum(0)
        product_M += unit_MX @ excess_X
        gram_MM = unit_MX @ unit_MX.T + NO_NOISE * torch.eye(len(unit_MX))
        decoded_M += torch.linalg.solve(gram_MM, unit_MX @ excess_X)
    decrease_M = setup.losses(setup.start_X) - setup.losses(trace.end_X)
    white = {"white_box_product": product_M.double().numpy(), "white_box_decoded": decoded_M.double().numpy()}
    return white | {"black_box": decrease_M}
