"""Clip the gradient of each record and sum; the sum carries its own sensitivity.

Invariants
- The gradient of a record is the sum over all its sequences, clipped once. A single sequence is never clipped.
- Nothing is averaged over the sampled records: their number has no effect.
- Arithmetic is at least float32, whatever the dtype of the gradients.

Shapes: R records, trailing dimensions those of a parameter; a list holds one tensor per parameter.

>>> from torch import tensor
>>> both = clip_summed([tensor([[3.0], [0.25]])], clip=0.5)
>>> round(both.value[0].item(), 6), both.sensitivity
(0.75, 0.5)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Above this a float32 scale factor would become subnormal and inexact; no useful gradient is near it.
NORM_LIMIT = 1e30
# Keeps the norm of a clipped record below the clip norm after float32 rounding of scale factor and products.
INSIDE = 1 - 2.0**-22


@dataclass(frozen=True)
class ClippedSum:
    """A sum over records, one tensor for each parameter, and its L2 sensitivity to one added or removed record."""

    value: list[Tensor]
    sensitivity: float

    def __add__(self, other: "ClippedSum") -> "ClippedSum":
        """Return the sum over both sets of records.

        Guarantees: the sensitivity is the greater of the two. This needs disjoint sets, so that a record is in one
        sum only.
        """
        value = [left + right for left, right in zip(self.value, other.value, strict=True)]
        return ClippedSum(value, max(self.sensitivity, other.sensitivity))

    @classmethod
    def zero(cls, like: Sequence[Tensor], clip: float) -> "ClippedSum":
        """Return the sum over no records, in the shapes of the parameters `like`."""
        return cls([torch.zeros(p.shape, dtype=at_least_float32(p.dtype), device=p.device) for p in like], clip)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`, or float32 if that is wider."""
    return torch.promote_types(dtype, torch.float32)


def clip_summed(grads: Sequence[Tensor], clip: float) -> ClippedSum:
    """Clip the gradient of each record to L2 norm `clip`, and sum over records.

    Guarantees: adding or removing one record moves `value` by at most `clip`, up to float rounding of the sum
    (below 1e-5 of `clip`).

    | gradient of a record | counts as |
    |---|---|
    | norm <= clip | itself |
    | norm above clip | scaled to norm clip |
    | any NaN or infinity, or a norm above 1e30 | zero |
    | zero | zero |

    Args:
        grads: one tensor `[R, ...]` for each parameter.
        clip: the clip norm, finite and above 0.

    Raises:
        ValueError: the clip norm is out of range.
    """
    scale_R = scales(torch.stack([record_norms(g) for g in grads]).norm(dim=0), clip)
    return ClippedSum([_scaled_sum(g, scale_R) for g in grads], clip)


def scales(norms_R: Tensor, clip: float) -> Tensor:
    """Return the factor on the gradient of each record, `[R]`; 0 for an unusable record.

    Args:
        norms_R: L2 norms, float64.
        clip: the clip norm, finite and above 0.

    Raises:
        ValueError: the clip norm is out of range.
    """
    if not (math.isfinite(clip) and clip > 0):
        raise ValueError("a clip norm is a finite number above 0")
    usable_R = norms_R <= NORM_LIMIT  # False for NaN
    return (clip * INSIDE / norms_R.clamp(min=clip * INSIDE)).where(usable_R, 0.0)


def record_norms(grads_R: Tensor) -> Tensor:
    """Return L2 norms `[R]` in float64, so that squares do not overflow and keep the digits that the bound needs."""
    norms_R = grads_R.new_empty(len(grads_R), dtype=torch.float64)
    # One record after the other, in the cache: a conversion within the reduction takes ten times as long.
    for norm, grad in zip(norms_R, grads_R, strict=True):
        norm.copy_(torch.linalg.vector_norm(grad.double()))
    return norms_R


def _scaled_sum(grads_R: Tensor, scale_R: Tensor) -> Tensor:
    usable_R = scale_R > 0
    if not usable_R.all():
        # Zero times NaN is NaN, so such rows are replaced, not scaled.
        grads_R = grads_R.where(usable_R.view(-1, *[1] * (grads_R.dim() - 1)), 0.0)
    total: Tensor = torch.tensordot(scale_R.to(grads_R.dtype), grads_R, dims=1)
    return total
