"""Tokens times the rows of blocks: one product for every kind of memory.

Invariants
- The result is `x_BTI @ w_BIO`, whichever way it is computed.
- A block that all items share is multiplied once for all tokens, and any other has a matrix for each item; another
  number of matrices is an error, never the first one for all.
- Where a block is expanded to one copy per item and wants a gradient, each item's own gradient comes out of one plain
  backward pass, which is what DP-SGD clips (docs/design.md, §7).
- Inside `booked`, that pass enters what those gradients are made of in a book and forms none of them; a pass that
  began outside is not touched, and nothing is left behind where an exception ends it.

Shapes: B batch (or 1 for all), T tokens, I and O the dimensions of a product.

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

Enter = Callable[[Tensor, Tensor, Tensor], bool]
"""Takes `x_BTI`, the gradient of the product `[B, T, O]` and the expanded `w_BIO`; False where that is not wanted."""
_BOOK: ContextVar[Enter | None] = ContextVar("book", default=None)


@contextmanager
def booked(enter: Enter) -> Iterator[None]:
    """Products of expanded blocks that are made inside call `enter` in their backward pass, wherever that runs."""
    before = _BOOK.set(enter)
    try:
        yield
    finally:
        _BOOK.reset(before)


def product(x_BTI: Tensor, w_BIO: Tensor) -> Tensor:
    """`x_BTI @ w_BIO`, where `w_BIO` has a matrix for each item, one for all, or one expanded over all."""
    if w_BIO.stride(0) == 0 and len(w_BIO) == len(x_BTI) > 1:
        found: Tensor = _Expanded.apply(x_BTI, w_BIO)  # type: ignore[no-untyped-call]
        return found
    if len(w_BIO) == 1 != len(x_BTI):
        return _flat(x_BTI, w_BIO[0])
    return torch.bmm(x_BTI, w_BIO)


def added(output_BTO: Tensor, x_BTI: Tensor, w_BIO: Tensor, scale: float = 1.0) -> Tensor:
    """`output_BTO + scale * (x_BTI @ w_BIO)`, in one pass over the output where that can be."""
    if w_BIO.stride(0) == 0 and len(w_BIO) == len(x_BTI) > 1:
        return torch.add(output_BTO, product(x_BTI, w_BIO), alpha=scale)
    if len(w_BIO) == 1 != len(x_BTI):
        flat_NO = torch.addmm(output_BTO.flatten(0, 1), x_BTI.flatten(0, 1), w_BIO[0], alpha=scale)
        return flat_NO.view(output_BTO.shape)
    # So in decoding: of one row, a batched product starts faster than a plain one.
    return torch.baddbmm(output_BTO, x_BTI, w_BIO, alpha=scale)


class _Expanded(torch.autograd.Function):
    """One matrix product forward; backward an entry in the book, or a gradient of the matrix for each item."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, w_BIO: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTI, w_BIO)
        ctx.enter = _BOOK.get()
        return _flat(x_BTI, w_BIO[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BTI, w_BIO = ctx.saved_tensors
        grad_BTO = grads[0].to(w_BIO.dtype)
        wants_x, wants_w = ctx.needs_input_grad
        back = _flat(grad_BTO, w_BIO[0].T).to(x_BTI.dtype) if wants_x else None
        x_BTI = x_BTI.to(w_BIO.dtype)
        if not wants_w or (ctx.enter and ctx.enter(x_BTI, grad_BTO, w_BIO)):
            return back, None
        return back, torch.bmm(x_BTI.mT, grad_BTO)


def _flat(x_BTI: Tensor, w_IO: Tensor) -> Tensor:
    return torch.mm(x_BTI.flatten(0, 1), w_IO).view(*x_BTI.shape[:2], w_IO.shape[1])
