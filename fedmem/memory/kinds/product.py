"""Multiply tokens with the rows of blocks: one product for every kind of memory.

Invariants
- The result is `x_BTI @ w_BIO` in every case.
- A block that all items share is multiplied once for all tokens. Otherwise there is one matrix for each item. Another
  number of matrices is an error; the first one is never used for all.
- If a block is expanded to one copy for each item and needs a gradient, one plain backward pass gives the gradient of
  each item.
- Inside `gathered`, the backward pass of a product with one matrix for all adds its gradient to a buffer at once. A
  product that was made outside is not affected. An exception leaves nothing behind.

Shapes: B batch (or 1 where one matrix is for all items), T tokens, I and O the dimensions of a product.

>>> x_BTI, w_BIO = torch.ones(2, 3, 4), torch.ones(1, 4, 5)
>>> product(x_BTI, w_BIO).shape
torch.Size([2, 3, 5])
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Place = Callable[[Tensor], Tensor | None]
"""A callback with a matrix `w_BIO`. It returns where the gradient `[I, O]` is added, or None for a plain gradient."""
_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def gathered(place: Place) -> Iterator[None]:
    """Add the gradients of matrices of products that are made inside the `with` to where `place` says.

    Such a matrix has no gradient of its own then: no copies of parts of a block are made and added up. The backward
    pass itself may run outside the `with`, and in another thread.

    Args:
        place: returns the buffer `[I, O]` for a matrix, or None for a matrix that gets a plain gradient.
    """
    outer = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(outer)


def product(x_BTI: Tensor, w_BIO: Tensor) -> Tensor:
    """Return `x_BTI @ w_BIO`, `[B, T, O]`.

    Args:
        x_BTI: the tokens of each item.
        w_BIO: one matrix for each item, one for all (`[1, I, O]`), or one expanded over all items.

    Raises:
        RuntimeError: `w_BIO` has another number of matrices.
    """
    if (onto_IO := _gathering(w_BIO)) is not None:
        gathered_BTO: Tensor = _Gathered.apply(x_BTI, w_BIO, onto_IO)  # type: ignore[no-untyped-call]
        return gathered_BTO
    if w_BIO.stride(0) == 0 and len(w_BIO) == len(x_BTI) > 1:
        result_BTO: Tensor = _Expanded.apply(x_BTI, w_BIO)  # type: ignore[no-untyped-call]
        return result_BTO
    if len(w_BIO) == 1 != len(x_BTI):
        return _flat(x_BTI, w_BIO[0])
    return torch.bmm(x_BTI, w_BIO)


def add_product(output_BTO: Tensor, x_BTI: Tensor, w_BIO: Tensor, scale: float = 1.0) -> Tensor:
    """Return `output_BTO + scale * (x_BTI @ w_BIO)`, with one pass over the output where possible.

    Args:
        output_BTO: the tensor to add to; it is not changed.
        x_BTI: as for `product`.
        w_BIO: as for `product`.
        scale: factor of the product.
    """
    is_expanded = w_BIO.stride(0) == 0 and len(w_BIO) == len(x_BTI) > 1
    if is_expanded or _gathering(w_BIO) is not None:
        return torch.add(output_BTO, product(x_BTI, w_BIO), alpha=scale)
    if len(w_BIO) == 1 != len(x_BTI):
        flat_NO = torch.addmm(output_BTO.flatten(0, 1), x_BTI.flatten(0, 1), w_BIO[0], alpha=scale)
        return flat_NO.view(output_BTO.shape)
    # Decoding takes this way: for one row, a batched product starts faster than a plain one.
    return torch.baddbmm(output_BTO, x_BTI, w_BIO, alpha=scale)


def _gathering(w_BIO: Tensor) -> Tensor | None:
    """Return where the gradient of the matrix is added, or None outside of `gathered` and for other matrices."""
    place = _PLACE.get()
    return place(w_BIO) if place and w_BIO.requires_grad and len(w_BIO) == 1 else None


class _Gathered(torch.autograd.Function):
    """One matrix product; its backward pass adds the gradient of the matrix to a given place."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, w_BIO: Tensor, onto_IO: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI, w_BIO)
        ctx.onto_IO = onto_IO
        return _flat(x_BTI, w_BIO[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        x_BTI, w_BIO = ctx.saved_tensors
        grad_BTO, onto_IO = grads[0].to(w_BIO.dtype), ctx.onto_IO
        onto_IO.addmm_(x_BTI.flatten(0, 1).T.to(onto_IO.dtype), grad_BTO.flatten(0, 1).to(onto_IO.dtype))
        return _flat(grad_BTO, w_BIO[0].T).to(x_BTI.dtype) if ctx.needs_input_grad[0] else None, None, None


class _Expanded(torch.autograd.Function):
    """One matrix product; its backward pass computes a gradient for each item."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, w_BIO: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI, w_BIO)
        return _flat(x_BTI, w_BIO[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BTI, w_BIO = ctx.saved_tensors
        grad_BTO = grads[0].to(w_BIO.dtype)
        wants_x, wants_w = ctx.needs_input_grad
        back = _flat(grad_BTO, w_BIO[0].T).to(x_BTI.dtype) if wants_x else None
        return back, torch.bmm(x_BTI.to(w_BIO.dtype).mT, grad_BTO) if wants_w else None


def _flat(x_BTI: Tensor, w_IO: Tensor) -> Tensor:
    return torch.mm(x_BTI.flatten(0, 1), w_IO).view(*x_BTI.shape[:2], w_IO.shape[1])
