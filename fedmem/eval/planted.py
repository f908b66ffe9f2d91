"""Bugs planted in the mechanism, and the exact tests that see what an audit has no power to see.

Each bug replaces one piece of the mechanism while a `with` lasts; production code knows nothing of it.

| bug | what is wrong |
|---|---|
| no_noise | the clipped sum is released as it is |
| noise_over_b | the noise is divided by the divisor twice |
| no_clip | gradients are summed as they are |
| batch_clip | the sum over the batch is clipped, not each record |
| half_noise | half the noise that is charged |
| reused_stream | every step draws the same sample and noise |

Invariants
- A test trains by `train_block` and looks at the released updates alone; none knows which bug is there.
- A correct mechanism passes every test but with a chance below 1e-5, so keys may be fresh each time.
- What was replaced stands again when the `with` ends, however it ends.

    with BUGS["half_noise"](plan):
        first_failed(ground, plan, stream)  # "noise_std"
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
from fedmem.eval.one_run import Ground
from fedmem.privacy import dpsgd
from fedmem.privacy.clip import ClippedSum
from fedmem.privacy.gradients import PrivateSequences
from fedmem.privacy.plan import PrivacyPlan
from fedmem.privacy.stream import PrivacyStream

FAR = 1e6  # times the clip norm: no gradient of the ground is near it
LONG = 64  # sequences of a record that outweighs all others
NOISE_STEPS, PAIRED_STEPS = 64, 8
STD_OFF, SIGMAS, ROUNDING = 0.01, 6.0, 1e-5
FARTHEST = 2.7  # of 2 exp(-2 x^2), the chance of a greater Kolmogorov-Smirnov distance: 1e-6


@contextmanager
def replaced(owner: Any, name: str, piece: Callable[..., Any]) -> Iterator[None]:
    """`owner.name` is `piece` inside."""
    whole = getattr(owner, name)
    setattr(owner, name, piece)
    try:
        yield
    finally:
        setattr(owner, name, whole)


def _noise_times(factor: float) -> AbstractContextManager[None]:
    whole = dpsgd.add_noise
    return replaced(dpsgd, "add_noise", lambda clipped, multiplier, stream: whole(clipped, factor * multiplier, stream))


def _sums(change: Callable[[Tensor, float], Tensor]) -> AbstractContextManager[None]:
    """The sum of unclipped gradients, changed by `change(sum, clip)`, passed off as clipped."""
    whole: Callable[..., ClippedSum] = dpsgd.clipped_sum

    def piece(*given: Any) -> ClippedSum:
        *before, clip, micro_batch = given
        far = whole(*before, FAR * clip, micro_batch)
        return ClippedSum([change(value, clip) for value in far.value], clip)

    return replaced(dpsgd, "clipped_sum", piece)


def _reused() -> AbstractContextManager[None]:
    whole = PrivacyStream.substream
    return replaced(
        PrivacyStream, "substream", lambda self, name: whole(self, b"step" if name.startswith(b"step-") else name)
    )


BUGS: Mapping[str, Callable[[PrivacyPlan], AbstractContextManager[None]]] = {
    "no_noise": lambda _: replaced(dpsgd, "add_noise", lambda clipped, *_: clipped.value),
    "noise_over_b": lambda plan: _noise_times(1 / plan.divisor),
    "no_clip": lambda _: _sums(lambda sum_X, _: sum_X),
    "batch_clip": lambda _: _sums(lambda sum_X, clip: sum_X * min(1.0, clip / max(float(sum_X.norm()), clip))),
    "half_noise": lambda _: _noise_times(0.5),
    "reused_stream": lambda _: _reused(),
}
"""Each bug by name: a context in which the mechanism has it, given the plan that is audited."""


def noise_std(ground: Ground, plan: PrivacyPlan, stream: PrivacyStream) -> bool:
    """Updates of empty batches: std within 1 % of noise multiplier x clip / divisor, mean 0, normal."""
    updates = _noise(ground, replace(plan, steps=NOISE_STEPS), stream).ravel()
    std = plan.noise_multiplier * plan.clip / plan.divisor
    centred = abs(float(updates.mean())) < SIGMAS * std / math.sqrt(updates.size)
    return abs(float(updates.std()) / std - 1) < STD_OFF and centred and _distance(updates / std) < FARTHEST


def _distance(values_N: NDArray[np.float32]) -> float:
    """Kolmogorov-Smirnov distance of the values from a standard normal one, times the root of their number."""
    normal_N = torch.special.ndtr(torch.from_numpy(values_N).double().sort().values)
    steps = torch.arange(len(normal_N) + 1, dtype=torch.float64) / len(normal_N)
    gap = torch.maximum(normal_N - steps[:-1], steps[1:] - normal_N).max()
    return math.sqrt(len(normal_N)) * float(gap)


def sensitivity(ground: Ground, plan: PrivacyPlan, stream: PrivacyStream) -> bool:
    """Taking out any record moves the sum by at most the clip norm, be it one that outweighs all or a single token.

    No noise, every record in the sample: what differs between two runs is the clipped sum.
    """
    bare = replace(plan, steps=1, sampling_rate=1.0, noise_multiplier=0.0)
    lengths = (1, LONG, 1, 1)
    record_N = np.repeat(np.arange(len(lengths)), lengths)
    tokens_NT = ground.tokens_MT[record_N].clone()
    tokens_NT[-1, 1:] = PAD

    def total(keep_N: NDArray[np.bool_]) -> Tensor:
        records, own_N = np.unique(record_N[keep_N], return_inverse=True)
        data = PrivateSequences(tokens_NT[torch.from_numpy(keep_N)], own_N, len(records))
        return ground.run(data, bare, stream).updates_SX[0] * plan.divisor

    whole = total(np.ones(len(record_N), bool))
    moved = [float((whole - total(record_N != record)).double().norm()) for record in range(len(lengths))]
    return max(moved) <= plan.clip * (1 + ROUNDING)


def streams(ground: Ground, plan: PrivacyPlan, stream: PrivacyStream) -> bool:
    """The noise of every step of two runs is there, and uncorrelated with that of every other."""
    runs = [_noise(ground, replace(plan, steps=PAIRED_STEPS), stream.substream(name)) for name in (b"one", b"two")]
    updates = np.concatenate(runs)
    if not updates.std(axis=1).all():
        return False
    found = np.abs(np.corrcoef(updates) - np.eye(len(updates)))
    return bool(found.max() < SIGMAS / math.sqrt(updates.shape[1]))


def _noise(ground: Ground, plan: PrivacyPlan, stream: PrivacyStream) -> NDArray[np.float32]:
    """Updates `[S, X]` of a run on no record."""
    nobody = ground.canaries(np.zeros(len(ground.tokens_MT), bool))
    updates: NDArray[np.float32] = torch.stack(ground.run(nobody, plan, stream).updates_SX).numpy()
    return updates


EXACT = {"streams": streams, "noise_std": noise_std, "sensitivity": sensitivity}
"""The exact tests by name: True where the mechanism passes."""


def first_failed(ground: Ground, plan: PrivacyPlan, stream: PrivacyStream) -> str | None:
    """Name of the first exact test that the mechanism, as it stands now, does not pass; None where it passes all."""
    for name, test in EXACT.items():
        if not test(ground, plan, stream.substream(name.encode())):
            return name
    return None
