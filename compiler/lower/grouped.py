"""The grouped product as an op of its own: rows sorted by group, each group with its own matrix.

torch's own grouped product wants bf16 and aligned shapes; this one takes every float type on CPU, and graphs
keep it as one node whatever the counts are."""

from __future__ import annotations

import torch
from torch import Tensor

from specc.compiler.lower.own import own_op


@own_op("grouped_mm_weight", lambda rows, grad, offsets: rows.new_empty(offsets.shape[0], rows.shape[1], grad.shape[1]))
def grouped_mm_weight(rows: Tensor, grad: Tensor, offsets: Tensor) -> Tensor:
    """The gradient of the weight: rows [M I], grad [M O] -> [N I O]."""
    out = rows.new_empty(offsets.shape[0], rows.shape[1], grad.shape[1])
    start = 0
    for group, end in enumerate(offsets.tolist()):
        if end > start:
            torch.mm(rows[start:end].t(), grad[start:end], out=out[group])
        else:
            out[group].zero_()
        start = end
    return out


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    rows, weight, offsets = ctx.saved_tensors  # type: ignore[attr-defined]
    # The weight's comes first: rows that were made anew for it are gone before those of the other are there.
    d_weight = grouped_mm_weight(rows, grad, offsets) if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
    d_rows = grouped_mm(grad, weight.transpose(1, 2), offsets) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
    return d_rows, d_weight, None


@own_op(
    "grouped_mm",
    lambda rows, weight, offsets: rows.new_empty(rows.shape[0], weight.shape[2]),
    backward=_backward,
    save=_save,
)
def grouped_mm(rows: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """rows [M I] sorted by group, weight [N I O], offsets [N] (each group's end) -> [M O], zero behind the last end."""
    out = rows.new_empty(rows.shape[0], weight.shape[2])
    start = 0
    for group, end in enumerate(offsets.tolist()):
        if end > start:
            torch.mm(rows[start:end], weight[group], out=out[start:end])
        start = end
    out[start:].zero_()
    return out
