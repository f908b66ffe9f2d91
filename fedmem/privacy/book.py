"""The gradients of a block for each sequence of a micro-batch, as what they are made of: book-keeping [Bu et al. 2023].

The gradient of a matrix `[I, O]` for one sequence is `x_TI.T @ grad_TO`. Where it is small it is formed. Where it is
large its norm comes from Gram matrices, `sum((x x.T) * (grad grad.T))`, and the sum of all clipped gradients is one
matrix product. Both come out of a single backward pass.

Invariants
- The norm of a record that is clipped together with others is never below its true one by more than rounding, and a
  record whose Gram matrices could not tell it to that is clipped alone, by the gradient that is then added.
- A record of several sequences is clipped once, alone: its gradient is the sum over all of them.
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
"""Rounding of a Gram norm, squared, in units of the dtype's epsilon and of the spread of its tokens, squared. More than
was found on any input of the tests, and far less than the worst case of error analysis."""
SPREAD = 4
"""Times the number of tokens: above this ratio of squared spread to squared norm the tokens of a record cancel each
other so far that rounding counts. Tokens in random directions have a ratio of their number."""


@dataclass(frozen=True)
class MatrixSlice:
    """Where a matrix lies in a block."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, block_X: Tensor) -> Tensor:
        """The matrix in a contiguous block, as a view."""
        return block_X.as_strided(self.shape, self.strides, block_X.storage_offset() + self.offset)

    @property
    def stop(self) -> int:
        """The end of what it covers."""
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))


class GradPart(Protocol):
    """Gradients of one matrix of the block for each sequence."""

    @property
    def place(self) -> MatrixSlice:
        """Where the matrix lies."""

    def norms(self) -> tuple[Tensor, Tensor]:
        """Squared norms `[B]`, and their spread squared, by which rounding goes; both float64."""

    def summed(self, chosen: slice | Tensor) -> Tensor:
        """The sum over the chosen sequences, in the shape of the matrix."""

    def weighted(self, weight_K: Tensor, kept: slice | Tensor, onto: Tensor) -> None:
        """Add the kept sequences' gradients, each times its weight, onto a matrix."""


@dataclass(frozen=True)
class DenseGrad:
    """Gradients that are there, `[B, ...]`."""

    place: MatrixSlice
    grads_B: Tensor

    def norms(self) -> tuple[Tensor, Tensor]:
        """The norms of what is added later, so no spread."""
        squares_B = record_norms(self.grads_B).square()
        return squares_B, torch.zeros_like(squares_B)

    def summed(self, chosen: slice | Tensor) -> Tensor:
        """As `Part`."""
        return self.grads_B[chosen].sum(0)

    def weighted(self, weight_K: Tensor, kept: slice | Tensor, onto: Tensor) -> None:
        """As `Part`."""
        onto.add_(torch.tensordot(weight_K.to(onto.dtype), self.grads_B[kept], dims=1))


@dataclass(frozen=True)
class ProductGrad:
    """Gradients `x_TI.T @ grad_TO` that are not formed."""

    place: MatrixSlice
    x_BTI: Tensor
    grad_BTO: Tensor

    def norms(self) -> tuple[Tensor, Tensor]:
        """Norms by Gram matrices; the spread is the sum over tokens of the norms of their outer products."""
        x_BTT, grad_BTT = (torch.bmm(part, part.mT) for part in (self.x_BTI, self.grad_BTO))
        spread_B = (_squares(x_BTT, self.x_BTI) * _squares(grad_BTT, self.grad_BTO)).sqrt().sum(1).square()
        return x_BTT.mul_(grad_BTT).sum(2).sum(1, dtype=torch.float64), spread_B

    def summed(self, chosen: slice | Tensor) -> Tensor:
        """As `Part`."""
        return self.x_BTI[chosen].flatten(0, 1).T @ self.grad_BTO[chosen].flatten(0, 1)

    def weighted(self, weight_K: Tensor, kept: slice | Tensor, onto: Tensor) -> None:
        """As `Part`, in one product over all tokens."""
        scaled_KTI = self.x_BTI[kept] * weight_K.to(onto.dtype).view(-1, 1, 1)
        onto.addmm_(scaled_KTI.flatten(0, 1).T, self.grad_BTO[kept].flatten(0, 1))


def _squares(gram_BTT: Tensor, part_BTV: Tensor) -> Tensor:
    """Squared norms of tokens, `[B, T]` float64, no less than what underflow may have taken from them."""
    lost = part_BTV.shape[2] * torch.finfo(part_BTV.dtype).tiny
    return gram_BTT.diagonal(dim1=1, dim2=2).double() + lost


@dataclass(frozen=True)
class GradBook:
    """Gradients of a contiguous `block_X` for `count` sequences, part by part; values that no part covers have none."""

    block_X: Tensor
    count: int
    parts: list[GradPart] = field(default_factory=list)

    @classmethod
    def of(cls, grads_BX: Tensor) -> "GradBook":
        """Gradients that are formed already."""
        book = cls(grads_BX.new_empty(grads_BX.shape[1]), len(grads_BX))
        book.add(grads_BX)
        return book

    def add(self, grads_BX: Tensor) -> None:
        """Add formed gradients of the whole block."""
        whole = MatrixSlice((grads_BX.shape[1],), (1,), 0)
        self.parts.append(DenseGrad(whole, grads_BX.to(at_least_float32(grads_BX.dtype))))

    def enter(self, x_BTI: Tensor, grad_BTO: Tensor, w_BIO: Tensor) -> bool:
        """Keep the gradients of a matrix of the expanded block, the smaller way; False where it is none of the block's.

        Formed they take I * O values for each sequence, else T * (I + O).
        """
        if w_BIO.untyped_storage().data_ptr() != self.block_X.untyped_storage().data_ptr():
            return False
        offset = int(w_BIO.storage_offset() - self.block_X.storage_offset())
        place = MatrixSlice(tuple(w_BIO.shape[1:]), w_BIO.stride()[1:], offset)
        dtype, (tokens, wide), high = at_least_float32(w_BIO.dtype), x_BTI.shape[1:], grad_BTO.shape[2]
        # Detached: they would hold the graph that they come from.
        x_BTI, grad_BTO = x_BTI.detach().to(dtype), grad_BTO.detach().to(dtype)
        small = wide * high <= tokens * (wide + high)
        self.parts.append(
            DenseGrad(place, torch.bmm(x_BTI.mT, grad_BTO)) if small else ProductGrad(place, x_BTI, grad_BTO)
        )
        return True

    def summed(self, chosen: slice | Tensor = slice(None)) -> Tensor:
        """The sum over the chosen sequences, `[X]`."""
        total_X = torch.zeros_like(self.block_X, dtype=at_least_float32(self.block_X.dtype))
        for part in self.parts:
            part.place.of(total_X).add_(part.summed(chosen))
        return total_X

    def full(self) -> Tensor:
        """The gradient of each sequence, `[B, X]`."""
        return torch.stack([self.summed(slice(number, number + 1)) for number in range(self.count)])

    def clipped(self, record_B: NDArray[np.int64], clip: float) -> ClippedSum:
        """Clip each record's gradient once, and sum: `clip_summed` of the gradients in full, summed by record.

        `record_B` says to which record each sequence belongs.
        """
        together_B, scale_B = self._together(record_B, clip)
        total = ClippedSum.zero([self.block_X], clip)
        # What is unusable is left out: zero times NaN is NaN.
        _add(self.parts, total.value[0], scale_B, together_B & (scale_B > 0))
        for record in np.unique(record_B[~together_B.numpy()]):
            alone = torch.from_numpy(np.flatnonzero(record_B == record))
            total += clip_summed([self.summed(alone)[None]], clip)
        return total

    def _together(self, record_B: NDArray[np.int64], clip: float) -> tuple[Tensor, Tensor]:
        """Which sequences are a record that can be clipped with others, and the scale of each."""
        _, own_B, count_R = np.unique(record_B, return_inverse=True, return_counts=True)
        only_B = torch.from_numpy(count_R[own_B] == 1)
        if not (self.parts and only_B.any() and _apart([part.place for part in self.parts])):
            return torch.zeros(self.count, dtype=torch.bool), torch.zeros(self.count, dtype=torch.float64)
        squares_B, spread_B = (sum(found) for found in zip(*(part.norms() for part in self.parts), strict=True))
        margin = MARGIN * torch.finfo(at_least_float32(self.block_X.dtype)).eps
        scale_B = scales((squares_B + margin * spread_B).sqrt(), clip)
        return only_B & self._told(squares_B, spread_B), scale_B

    def _told(self, squares_B: Tensor, spread_B: Tensor) -> Tensor:
        """Whether Gram matrices tell the norm; False where anything is NaN or infinite."""
        tokens = max((part.x_BTI.shape[1] for part in self.parts if isinstance(part, ProductGrad)), default=1)
        return (squares_B < torch.inf) & (spread_B <= SPREAD * tokens * squares_B)


def _apart(places: Sequence[MatrixSlice]) -> bool:
    """Whether no two overlap, so that squared norms add up."""
    ordered = sorted(places, key=lambda place: place.offset)
    return all(one.stop <= next_.offset for one, next_ in pairwise(ordered))


def _add(parts: Sequence[GradPart], total_X: Tensor, scale_B: Tensor, kept_B: Tensor) -> None:
    kept = slice(None) if kept_B.all() else kept_B.nonzero()[:, 0]
    for part in parts if kept_B.any() else ():
        part.weighted(scale_B[kept], kept, part.place.of(total_X))
