"""Multiply tokens with the rows of blocks: one product for every kind of memory.

Invariants
- The result is `x_BTI @ w_BIO` in every case.
- A block that all items share is multiplied once for all tokens. Otherwise there is one matrix for each item. Another
  number of matrices is an error; the first one is never used for all.
- If a block is expanded to one copy for each item and needs a gradient, one plain backward pass gives the gradient of
  each item. DP-SGD clips these gradients (docs/design.md, §7).
- Inside `recording_factors`, the backward pass hands the factors of those gradients to a callback and does not
  compute the gradients. A product that was made outside is not affected. An exception leaves no callback behind.

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

FactorCallback = Callable[[Tensor, Tensor, Tensor], bool]
"""A callback with `x_BTI`, the gradient of the product `[B, T, O]` and the expanded `w_BIO`.

It returns True if it took the factors, or False if the gradients are to be computed as usual.
"""
_BOOK: ContextVar[FactorCallback | None] = ContextVar("book", default=None)


@contextmanager
def recording_factors(enter: FactorCallback) -> Iterator[None]:
    """Call `enter` in the backward pass of every product of an expanded block that is made inside the `with`.

    The backward pass itself may run outside the `with`, and in another thread.

    Args:
        enter: takes the factors of one product.
    """
    outer = _BOOK.set(enter)
    try:
        yield
    finally:
        _BOOK.reset(outer)


def product(x_BTI: Tensor, w_BIO: Tensor) -> Tensor:
    """Return `x_BTI @ w_BIO`, `[B, T, O]`.

    Args:
        x_BTI: the tokens of each item.
        w_BIO: one matrix for each item, one for all (`[1, I, O]`), or one expanded over all items.

    Raises:
        RuntimeError: `w_BIO` has another number of matrices.
    """
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
    if w_BIO.stride(0) == 0 and len(w_BIO) == len(x_BTI) > 1:
        return torch.add(output_BTO, product(x_BTI, w_BIO), alpha=scale)
    if len(w_BIO) == 1 != len(x_BTI):
        flat_NO = torch.addmm(output_BTO.flatten(0, 1), x_BTI.flatten(0, 1), w_BIO[0], alpha=scale)
        return flat_NO.view(output_BTO.shape)
    # Decoding takes this way: for one row, a batched product starts faster than a plain one.
    return torch.baddbmm(output_BTO, x_BTI, w_BIO, alpha=scale)


class _Expanded(torch.autograd.Function):
    """One matrix product; its backward pass calls a callback with the factors, or computes a gradient for each item."""

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
