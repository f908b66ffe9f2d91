"""Plant bugs in the mechanism, and detect with exact tests those that an audit cannot detect.

Each bug replaces one function of the mechanism inside a `with`. Production code has no code for it.

| bug | what is wrong |
|---|---|
| no_noise | the clipped sum is released without noise |
| noise_over_b | the noise is divided by the divisor twice |
| no_clip | gradients are summed without clipping |
| batch_clip | the sum over the batch is clipped, not each record |
| half_noise | half the noise that is charged |
| reused_stream | every step draws the same sample and noise |

Invariants
- A test trains with `train_block` and uses the released updates only. It does not know which bug is planted.
- A correct mechanism fails a test with a probability below 1e-5, so each test may use a fresh key.
- The replaced function is restored when the `with` ends, also by an exception.

    with BUGS["half_noise"](plan):
        first_failed(setup, plan, stream)  # "noise_std"
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmem.anchor.tokenizer import PAD
from fedmem.eval.one_run import AuditSetup
from fedmem.privacy import dpsgd
from fedmem.privacy.clip import CellSum
from fedmem.privacy.gradients import PrivateSequences
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

FAR = 1e6  # times the clip norm: no gradient of the setup is near it
LONG = 64  # sequences of the long record, whose gradient is greater than all others
NOISE_STEPS, PAIRED_STEPS = 64, 8
STD_OFF, SIGMAS, ROUNDING = 0.01, 6.0, 1e-5
FARTHEST = 2.7  # of 2 exp(-2 x^2), the chance of a greater Kolmogorov-Smirnov distance: 1e-6


@contextmanager
def replace_attribute(owner: Any, name: str, piece: Callable[..., Any]) -> Iterator[None]:
    """Replace `owner.name` by `piece` inside the `with`.

    Args:
        owner: a module or a class.
        name: name of a function of `owner`.
        piece: the function in its place.
    """
    original = getattr(owner, name)
    setattr(owner, name, piece)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _noise_times(factor: float) -> AbstractContextManager[None]:
    original = dpsgd.add_noise

    def broken(clipped: CellSum, noise_multiplier: float, stream: PrivacyStream) -> Tensor:
        noise_X = original(clipped, noise_multiplier, stream) - clipped.cells_X
        return clipped.cells_X + (factor * noise_X.double()).long()

    return replace_attribute(dpsgd, "add_noise", broken)


def _sums(change: Callable[[Tensor, int], Tensor]) -> AbstractContextManager[None]:
    """Replace the clipped sum by `change(sum, cells)` of the unclipped sum, labelled as clipped."""
    original: Callable[..., CellSum] = dpsgd.clipped_sum

    def broken(*arguments: Any) -> CellSum:
        *others, grid = arguments
        unclipped = original(*others, replace(grid, clip=FAR * grid.clip))
        return CellSum(change(unclipped.cells_X.double(), grid.cells).long(), grid)

    return replace_attribute(dpsgd, "clipped_sum", broken)


def _reused() -> AbstractContextManager[None]:
    original = PrivacyStream.substream
    return replace_attribute(
        PrivacyStream, "substream", lambda self, name: original(self, b"step" if name.startswith(b"step-") else name)
    )


BUGS: Mapping[str, Callable[[PrivacyPlan], AbstractContextManager[None]]] = {
    "no_noise": lambda _: replace_attribute(dpsgd, "add_noise", lambda clipped, *_: clipped.cells_X),
    "noise_over_b": lambda plan: _noise_times(1 / plan.divisor),
    "no_clip": lambda _: _sums(lambda sum_X, _: sum_X),
    "batch_clip": lambda _: _sums(lambda sum_X, cells: sum_X * min(1.0, cells / max(float(sum_X.norm()), cells))),
    "half_noise": lambda _: _noise_times(0.5),
    "reused_stream": lambda _: _reused(),
}
"""The bugs by name: each takes the audited plan and returns a context in which the mechanism has the bug."""


def has_declared_noise(setup: AuditSetup, plan: PrivacyPlan, stream: PrivacyStream) -> bool:
    """Return True if the updates of empty batches have the declared noise.

    Their std is within 1 % of noise multiplier x clip / divisor, their mean is 0, and they are normal.

    Args:
        setup: anchor, block and canaries.
        plan: the public settings; its number of steps is not used.
        stream: decides the noise.
    """
    updates = _noise(setup, replace(plan, steps=NOISE_STEPS), stream).ravel()
    std = plan.noise_multiplier * plan.clip / plan.divisor
    is_centred = abs(float(updates.mean())) < SIGMAS * std / math.sqrt(updates.size)
    return abs(float(updates.std()) / std - 1) < STD_OFF and is_centred and _distance(updates / std) < FARTHEST


def _distance(values_N: NDArray[np.float32]) -> float:
    """Return the Kolmogorov-Smirnov distance of the values from a standard normal, times the root of their number."""
    normal_N = torch.special.ndtr(torch.from_numpy(values_N).double().sort().values)
    steps = torch.arange(len(normal_N) + 1, dtype=torch.float64) / len(normal_N)
    gap = torch.maximum(normal_N - steps[:-1], steps[1:] - normal_N).max()
    return math.sqrt(len(normal_N)) * float(gap)


def has_bounded_sensitivity(setup: AuditSetup, plan: PrivacyPlan, stream: PrivacyStream) -> bool:
    """Return True if removing any record changes the sum by at most the clip norm.

    One record has a gradient greater than all others, and one has a single token. The runs have no noise and every
    record in the sample, so two runs differ in the clipped sum only.

    Args:
        setup: anchor, block and canaries.
        plan: the public settings; clip norm and divisor are used.
        stream: decides sampling.
    """
    bare = replace(plan, steps=1, sampling_rate=1.0, noise_multiplier=0.0)
    lengths = (1, LONG, 1, 1)
    record_N = np.repeat(np.arange(len(lengths)), lengths)
    tokens_NT = setup.tokens_MT[record_N].clone()
    tokens_NT[-1, 1:] = PAD

    def update_sum(keep_N: NDArray[np.bool_]) -> Tensor:
        records, kept_record_N = np.unique(record_N[keep_N], return_inverse=True)
        data = PrivateSequences(tokens_NT[torch.from_numpy(keep_N)], kept_record_N, len(records))
        return setup.run(data, bare, stream).updates_SX[0] * plan.divisor

    full_sum = update_sum(np.ones(len(record_N), bool))
    changes = [float((full_sum - update_sum(record_N != record)).double().norm()) for record in range(len(lengths))]
    return max(changes) <= plan.clip * (1 + ROUNDING)


def has_independent_noise(setup: AuditSetup, plan: PrivacyPlan, stream: PrivacyStream) -> bool:
    """Return True if every step of two runs has noise, and the noise of no two steps is correlated.

    Args:
        setup: anchor, block and canaries.
        plan: the public settings; its number of steps is not used.
        stream: decides the noise; each run has a substream.
    """
    runs = [_noise(setup, replace(plan, steps=PAIRED_STEPS), stream.substream(name)) for name in (b"one", b"two")]
    updates = np.concatenate(runs)
    if not updates.std(axis=1).all():
        return False
    correlations = np.abs(np.corrcoef(updates) - np.eye(len(updates)))
    return bool(correlations.max() < SIGMAS / math.sqrt(updates.shape[1]))


def _noise(setup: AuditSetup, plan: PrivacyPlan, stream: PrivacyStream) -> NDArray[np.float32]:
    """Return the updates `[S, X]` of a run without records."""
    no_records = setup.canaries(np.zeros(len(setup.tokens_MT), bool))
    updates: NDArray[np.float32] = torch.stack(setup.run(no_records, plan, stream).updates_SX).numpy()
    return updates


EXACT = {"streams": has_independent_noise, "noise_std": has_declared_noise, "sensitivity": has_bounded_sensitivity}
"""The exact tests by name; each returns True if the mechanism passes."""


def find_failed_test(setup: AuditSetup, plan: PrivacyPlan, stream: PrivacyStream) -> str | None:
    """Return the name of the first exact test that the mechanism fails as it is now, or None if it passes all.

    Args:
        setup: anchor, block and canaries.
        plan: the public settings.
        stream: decides sampling and noise.
    """
    for name, test in EXACT.items():
        if not test(setup, plan, stream.substream(name.encode())):
            return name
    return None
