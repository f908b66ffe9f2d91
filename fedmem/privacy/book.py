"""Keep the gradients of a block for each sequence of a micro-batch as factors: book-keeping [Bu et al. 2023].

The gradient of a matrix `[I, O]` for one sequence is `x_TI.T @ grad_TO`. A small gradient is formed. For a large one
the norm comes from Gram matrices, `sum((x x.T) * (grad grad.T))`, and the sum of all clipped gradients is one matrix
product. Both need a single backward pass.

Invariants
- Records can be clipped together, by norms from Gram matrices. Such a norm is below the true norm by rounding at most.
- A record whose Gram matrices do not give that precision is clipped alone, by the norm of the gradient that is added.
- A record of several sequences is clipped once, alone: its gradient is the sum over all its sequences.
- A record with a NaN or infinity takes part in no product with other records.

Shapes: B sequences, T tokens, I and O the dimensions of a matrix, X values of the block, K kept sequences.

>>> book = GradBook.of(torch.tensor([[3.0, 4.0], [0.0, 0.1]]))
>>> book.clipped(np.array([0, 1]), clip=1.0).value[0]
tensor([0.6000, 0.9000])
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmem.privacy.clip import ClippedSum, at_least_float32, clip_summed, record_norms, scales

MARGIN = 2.0
"""The allowance for rounding of a squared Gram norm, in units of the dtype's epsilon times the squared spread. It is
more than any input of the tests showed, and far less than the worst case of error analysis."""
SPREAD = 4
"""The greatest ratio of squared spread to squared norm of a record, as a multiple of its number of tokens. Above it the
tokens cancel each other so much that rounding matters. For tokens in random directions the ratio is their number."""


@dataclass(frozen=True)
class MatrixSlice:
    """The place of a matrix in a block."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, block_X: Tensor) -> Tensor:
        """Return the matrix as a view of a contiguous block."""
        return block_X.as_strided(self.shape, self.strides, block_X.storage_offset() + self.offset)

    @property
    def stop(self) -> int:
        """The offset after the last value of the matrix."""
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


class GradPart(Protocol):
    """The gradients of one matrix of the block, for each sequence."""

    @property
    def place(self) -> MatrixSlice:
        """The place of the matrix in the block."""

    def norms(self) -> tuple[Tensor, Tensor]:
        """Return squared norms `[B]` and squared spreads `[B]`, float64; rounding is proportional to the spread."""

    def summed(self, chosen: slice | Tensor) -> Tensor:
        """Return the sum over the chosen sequences, in the shape of the matrix."""

    def add_weighted(self, weight_K: Tensor, kept: slice | Tensor, onto: Tensor) -> None:
        """Add the gradients of the kept sequences, each times its weight, to the matrix `onto`."""


@dataclass(frozen=True)
class DenseGrad:
    """Gradients that are formed, `[B, ...]`."""

    place: MatrixSlice
    grads_B: Tensor

    def norms(self) -> tuple[Tensor, Tensor]:
        """Return squared norms, and spreads of 0: these are the norms of the gradients that are added later."""
        squares_B = record_norms(self.grads_B).square()
        return squares_B, torch.zeros_like(squares_B)

    def summed(self, chosen: slice | Tensor) -> Tensor:
        """Return the sum over the chosen sequences, in the shape of the matrix."""
        return self.grads_B[chosen].sum(0)

    def add_weighted(self, weight_K: Tensor, kept: slice | Tensor, onto: Tensor) -> None:
        """Add the gradients of the kept sequences, each times its weight, to the matrix `onto`."""
        onto.add_(torch.tensordot(weight_K.to(onto.dtype), self.grads_B[kept], dims=1))


@dataclass(frozen=True)
class ProductGrad:
    """Gradients `x_TI.T @ grad_TO`, kept as their two factors."""

    place: MatrixSlice
    x_BTI: Tensor
    grad_BTO: Tensor

    def norms(self) -> tuple[Tensor, Tensor]:
        """Return squared norms by Gram matrices. The spread is the sum over tokens of the norms of outer products."""
        x_BTT, grad_BTT = (torch.bmm(part, part.mT) for part in (self.x_BTI, self.grad_BTO))
        spread_B = (_squares(x_BTT, self.x_BTI) * _squares(grad_BTT, self.grad_BTO)).sqrt().sum(1).square()
        return x_BTT.mul_(grad_BTT).sum(2).sum(1, dtype=torch.float64), spread_B

    def summed(self, chosen: slice | Tensor) -> Tensor:
        """Return the sum over the chosen sequences, in the shape of the matrix."""
        return self.x_BTI[chosen].flatten(0, 1).T @ self.grad_BTO[chosen].flatten(0, 1)

    def add_weighted(self, weight_K: Tensor, kept: slice | Tensor, onto: Tensor) -> None:
        """Add the gradients of the kept sequences, each times its weight, by one product over all tokens."""
        scaled_KTI = self.x_BTI[kept] * weight_K.to(onto.dtype).view(-1, 1, 1)
        onto.addmm_(scaled_KTI.flatten(0, 1).T, self.grad_BTO[kept].flatten(0, 1))


def _squares(gram_BTT: Tensor, part_BTV: Tensor) -> Tensor:
    """Return upper bounds on the squared norms of tokens, `[B, T]`, float64; underflow is allowed for."""
    underflow = part_BTV.shape[2] * torch.finfo(part_BTV.dtype).tiny
    return gram_BTT.diagonal(dim1=1, dim2=2).double() + underflow


@dataclass(frozen=True)
class GradBook:
    """The gradients of a block for each sequence of a micro-batch, in parts.

    Attributes:
        block_X: the block, contiguous.
        count: number of sequences.
        parts: gradients of matrices of the block. Values that no part covers have gradient 0.
    """

    block_X: Tensor
    count: int
    parts: list[GradPart] = field(default_factory=list)

    @classmethod
    def of(cls, grads_BX: Tensor) -> "GradBook":
        """Return a book of gradients `[B, X]` that are already formed."""
        book = cls(grads_BX.new_empty(grads_BX.shape[1]), len(grads_BX))
        book.add(grads_BX)
        return book

    def add(self, grads_BX: Tensor) -> None:
        """Add formed gradients of the whole block, `[B, X]`."""
        whole = MatrixSlice((grads_BX.shape[1],), (1,), 0)
        self.parts.append(DenseGrad(whole, grads_BX.to(at_least_float32(grads_BX.dtype))))

    def enter(self, x_BTI: Tensor, grad_BTO: Tensor, w_BIO: Tensor) -> bool:
        """Keep the gradients of a matrix of the expanded block, in the form that takes less memory.

        A formed gradient takes I * O values for each sequence, its two factors take T * (I + O).

        Args:
            x_BTI: input of the matrix.
            grad_BTO: gradient of its output.
            w_BIO: the matrix, for each sequence.

        Returns:
            True if the gradients are kept; False if the matrix is not part of this block.
        """
        if w_BIO.untyped_storage().data_ptr() != self.block_X.untyped_storage().data_ptr():
            return False
        offset = int(w_BIO.storage_offset() - self.block_X.storage_offset())
        place = MatrixSlice(tuple(w_BIO.shape[1:]), w_BIO.stride()[1:], offset)
        dtype, (tokens, wide), high = at_least_float32(w_BIO.dtype), x_BTI.shape[1:], grad_BTO.shape[2]
        # Detached, because they would keep their autograd graph alive.
        x_BTI, grad_BTO = x_BTI.detach().to(dtype), grad_BTO.detach().to(dtype)
        is_small = wide * high <= tokens * (wide + high)
        self.parts.append(
            DenseGrad(place, torch.bmm(x_BTI.mT, grad_BTO)) if is_small else ProductGrad(place, x_BTI, grad_BTO)
        )
        return True

    def summed(self, chosen: slice | Tensor = slice(None)) -> Tensor:
        """Return the sum over the chosen sequences, `[X]`."""
        total_X = torch.zeros_like(self.block_X, dtype=at_least_float32(self.block_X.dtype))
        for part in self.parts:
            part.place.of(total_X).add_(part.summed(chosen))
        return total_X

    def full(self) -> Tensor:
        """Return the gradient of each sequence, `[B, X]`."""
        return torch.stack([self.summed(slice(number, number + 1)) for number in range(self.count)])

    def clipped(self, record_B: NDArray[np.int64], clip: float) -> ClippedSum:
        """Clip the gradient of each record once, and sum over records.

        Guarantees: the result is that of `clip_summed` on the full gradients of the records, up to float rounding.

        Args:
            record_B: the record of each sequence.
            clip: the clip norm, finite and above 0.

        Raises:
            ValueError: the clip norm is out of range.
        """
        is_joint_B, scale_B = self._joint_scales(record_B, clip)
        total = ClippedSum.zero([self.block_X], clip)
        # Unusable records have scale 0 and are left out: zero times NaN is NaN.
        _add_weighted(self.parts, total.value[0], scale_B, is_joint_B & (scale_B > 0))
        for record in np.unique(record_B[~is_joint_B.numpy()]):
            sequences = torch.from_numpy(np.flatnonzero(record_B == record))
            total += clip_summed([self.summed(sequences)[None]], clip)
        return total

    def _joint_scales(self, record_B: NDArray[np.int64], clip: float) -> tuple[Tensor, Tensor]:
        """Return a mask `[B]` of the records of one sequence that can be clipped together, and all scales `[B]`."""
        _, index_B, count_R = np.unique(record_B, return_inverse=True, return_counts=True)
        is_single_B = torch.from_numpy(count_R[index_B] == 1)
        if not (self.parts and is_single_B.any() and _are_disjoint([part.place for part in self.parts])):
            return torch.zeros(self.count, dtype=torch.bool), torch.zeros(self.count, dtype=torch.float64)
        squares_B, spread_B = (sum(terms) for terms in zip(*(part.norms() for part in self.parts), strict=True))
        margin = MARGIN * torch.finfo(at_least_float32(self.block_X.dtype)).eps
        scale_B = scales((squares_B + margin * spread_B).sqrt(), clip)
        return is_single_B & self._is_precise(squares_B, spread_B), scale_B

    def _is_precise(self, squares_B: Tensor, spread_B: Tensor) -> Tensor:
        """Return True for each Gram norm that is precise enough; False if it is NaN or infinite."""
        tokens = max((part.x_BTI.shape[1] for part in self.parts if isinstance(part, ProductGrad)), default=1)
        return (squares_B < torch.inf) & (spread_B <= SPREAD * tokens * squares_B)


def _are_disjoint(places: Sequence[MatrixSlice]) -> bool:
    """Return True if no two matrices overlap, so that their squared norms add up."""
    ordered = sorted(places, key=lambda place: place.offset)
    return all(place.stop <= next_place.offset for place, next_place in pairwise(ordered))


def _add_weighted(parts: Sequence[GradPart], total_X: Tensor, scale_B: Tensor, kept_B: Tensor) -> None:
    kept = slice(None) if kept_B.all() else kept_B.nonzero()[:, 0]
    for part in parts if kept_B.any() else ():
        part.add_weighted(scale_B[kept], kept, part.place.of(total_X))
