"""The training function under audit: canaries on a random anchor, what a run releases, and what it gives away.

Invariants
- Nothing of a user is touched: anchor, first rows and canaries are made here, from a fixed public seed.
- The run is `train_block` as the learner calls it. It is watched where its updates reach the optimiser; nothing of it
  is replaced, so what is audited is what is released: noise, divisor and all.
- The white box sees every block and every update, and knows every canary; the black box sees the canaries' losses.
- An attack never sees the coins.

Shapes: M canaries, T tokens, S steps, X values of the block.

    ground = Ground.new(canaries=500)
    trace = ground.run(ground.canaries(included_M), plan, stream)
    scores = attacks(ground, plan, trace)
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
from fedmem.memory.block import source
from fedmem.memory.sites import spec_for
from fedmem.memory.spec import MemorySpec
from fedmem.privacy.dpsgd import train_block
from fedmem.privacy.gradients import PrivateSequences, RuntimeOptions, frozen, per_sequence
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

Scores = NDArray[np.float64]
SHAPE, VOCABULARY, WIDTH, LENGTH = Shape(layers=2, d_model=32, ffn=64, heads=2, head_dim=16), 256, 16, 16
SEED, BATCH = 2305, 250
NO_NOISE = 1e-4
"""Variance of the noise, in clip norms, for an attacker who bets that there is none."""


@dataclass
class CanaryTrace:
    """What a run releases: the block before each step, the update that each step takes, and the last block."""

    blocks_SX: list[Tensor] = field(default_factory=list)
    updates_SX: list[Tensor] = field(default_factory=list)
    end_X: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class Ground:
    """A random anchor with memory, a block whose rows are all in use, and canaries of one sequence of random tokens."""

    model: PreTrainedModel
    memory: Memory
    spec: MemorySpec
    start_X: Tensor
    tokens_MT: Tensor

    @classmethod
    def new(cls, canaries: int) -> "Ground":
        """The same ground for the same number of canaries."""
        model, generator = new_anchor(SHAPE, VOCABULARY, SEED), torch.Generator().manual_seed(SEED)
        spec = spec_for(model, "ffn", 1, (WIDTH,))
        tokens_MT = torch.randint(1, VOCABULARY, (canaries, LENGTH), generator=generator)
        # Not M3 = 0: canaries whose gradients lie in all rows are farther from each other.
        return cls(model, attach(model), spec, 0.3 * torch.randn(spec.fetch_size, generator=generator), tokens_MT)

    def canaries(self, included_M: NDArray[np.bool_]) -> PrivateSequences:
        """The included canaries as private records."""
        own = np.flatnonzero(included_M)
        return PrivateSequences(self.tokens_MT[own], np.arange(len(own)), len(own))

    def run(self, data: PrivateSequences, plan: PrivacyPlan, stream: PrivacyStream) -> CanaryTrace:
        """Train on `data` and keep what is released. Raises QualityGateFailed where a step was not seen."""
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
        """Summed loss of each canary, `[M]`, with the block in use."""
        return sequence_losses(
            self.model,
            self.tokens_MT,
            self.memory,
            lambda numbers_B: [source(self.spec, block_X.expand(len(numbers_B), -1))],
            BATCH,
        )[0]

    def gradients(self, blocks_SX: list[Tensor]) -> Iterator[Tensor]:
        """Gradients `[M, X]` of every canary at each block in turn."""
        every = self.canaries(np.ones(len(self.tokens_MT), bool))
        with frozen(self.model), per_sequence(self.model, self.memory, self.spec, every, RuntimeOptions()) as of:
            for block_X in blocks_SX:
                parts = np.array_split(np.arange(every.records), -(-every.records // BATCH))
                yield torch.cat([of(block_X, numbers_B) for numbers_B in parts])


@contextmanager
def watched() -> Iterator[CanaryTrace]:
    """A trace of the blocks and updates that reach any optimiser inside."""
    trace = CanaryTrace()

    def keep(optimiser: torch.optim.Optimizer, *_: object) -> None:
        (block,) = optimiser.param_groups[0]["params"]
        trace.blocks_SX.append(block.detach().clone())
        trace.updates_SX.append(block.grad.detach().clone())

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield trace
    finally:
        handle.remove()


def attacks(ground: Ground, plan: PrivacyPlan, trace: CanaryTrace) -> dict[str, Scores]:
    """Scores `[M]` of each attack on a run of this plan, greater for canaries that look included.

    `white_box_product` adds up inner products of a canary's clipped gradient with the updates, `white_box_decoded`
    solves for the sample of every step by least squares, `black_box` is by how much a canary's loss fell.
    """
    product_M, decoded_M = torch.zeros(len(ground.tokens_MT)), torch.zeros(len(ground.tokens_MT))
    for update_X, grads_MX in zip(trace.updates_SX, ground.gradients(trace.blocks_SX), strict=True):
        unit_MX = grads_MX / grads_MX.norm(dim=1, keepdim=True).clamp(min=plan.clip)
        # In clip norms, and without what is expected of canaries of which each takes part by coin and sample.
        excess_X = update_X * plan.divisor / plan.clip - plan.sampling_rate / 2 * unit_MX.sum(0)
        product_M += unit_MX @ excess_X
        gram_MM = unit_MX @ unit_MX.T + NO_NOISE * torch.eye(len(unit_MX))
        decoded_M += torch.linalg.solve(gram_MM, unit_MX @ excess_X)
    fell_M = ground.losses(ground.start_X) - ground.losses(trace.end_X)
    white = {"white_box_product": product_M.double().numpy(), "white_box_decoded": decoded_M.double().numpy()}
    return white | {"black_box": fell_M}
