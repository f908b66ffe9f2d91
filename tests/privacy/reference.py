"""Per-record clipping as it is defined, one gradient per sequence: what faster ways are held to.

Shapes: N sequences, R records, trailing dimensions those of a parameter.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedmem.privacy.clip import ClippedSum, at_least_float32, clip_summed


def sum_by_record(grads_N: Tensor, record_N: Tensor, records: int) -> Tensor:
    """Per-record sums, `[R, ...]`, of per-sequence gradients `[N, ...]`; a record without sequences gets zeros."""
    grads_N = grads_N.to(at_least_float32(grads_N.dtype))
    if records == len(record_N) and torch.equal(record_N, torch.arange(records, device=record_N.device)):
        return grads_N
    return grads_N.new_zeros(records, *grads_N.shape[1:]).index_add_(0, record_N, grads_N)


def clip_records(grads: Sequence[Tensor], record_N: Tensor, records: int, clip: float) -> ClippedSum:
    """Sum per-sequence gradients by record, clip each record once, and sum: see `clip_summed`.

    `grads` holds per parameter `[N, ...]`; `record_N` (int64) says to which of `records` each sequence belongs.
    """
    return clip_summed([sum_by_record(g, record_N, records) for g in grads], clip)
