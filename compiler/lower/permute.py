"""Rows in another order, with gradients that are taken and not summed into place: each row is read once.

torch's gradient of x[order] adds rows into zeros one by one, since it does not know how often each comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def permuted(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """x[order], where `order` is a permutation of the rows and `inverse` leads back."""
    return copied(x, order, inverse, 1)


def copied(x: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
    """Each row of x [M, ...] as often as `copies` says. Copy c of row r has the number r * copies + c; they come in the
    `order` of a permutation of these numbers."""
    apply: Callable[..., Tensor] = _Copied.apply
    return apply(x, order, inverse, copies)


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x[order if copies == 1 else order // copies]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        back = grads[0][inverse]
        return back if ctx.copies == 1 else back.reshape(-1, ctx.copies, *back.shape[1:]).sum(1), None, None, None
