"""Exchanges whose sizes depend on the rank or on the data, as ops of their own: a graph keeps them as one node.

What a rank sends is read off its group when the op runs, so that one graph serves every rank."""

from __future__ import annotations

import torch
from torch import Tensor

from specc.compiler.lower.collectives import c10d
from specc.compiler.lower.named_groups import resolve
from specc.compiler.lower.own import own_op


@own_op("shift", lambda x, ranks, group, after=None: x.new_empty(x.numel()))
def shift(x: Tensor, ranks: int, group: str, after: Tensor | None = None) -> Tensor:
    """Start to send x to the next rank of a ring and to take that of the one before; the result is to be waited for.

    It comes after `after` is there: what depends on a gradient is made in the backward, not before and kept for it."""
    rank, n = resolve(group).rank(), x.numel()
    to = [n if r == (rank + 1) % ranks else 0 for r in range(ranks)]
    of = [n if r == (rank - 1) % ranks else 0 for r in range(ranks)]
    y: Tensor = c10d.all_to_all_single(x.reshape(-1), of, to, group)
    return y


Saved = tuple[Tensor, Tensor, Tensor, int, str]


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: Saved, output: Tensor) -> None:
    rows, send, receive, _, group = inputs
    ctx.save_for_backward(send, receive)
    ctx.n, ctx.group = rows.shape[0], group  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    send, receive = ctx.saved_tensors  # type: ignore[attr-defined]
    return exchange(grad, receive, send, ctx.n, ctx.group), None, None, None, None  # type: ignore[attr-defined]


@own_op(
    "exchange", lambda rows, send, receive, total, group: rows.new_empty(total, *rows.shape[1:]),
    backward=_backward, save=_save,
)  # fmt: skip
def exchange(rows: Tensor, send: Tensor, receive: Tensor, total: int, group: str) -> Tensor:
    """Rows [M, ...] in the order of the ranks that they go to; `send[r]` go to rank r and `receive[r]` come from it.

    The result has `total` rows; those behind the received ones are zeros."""
    to, of = send.tolist(), receive.tolist()
    got: Tensor = c10d.wait_tensor(c10d.all_to_all_single(rows[: sum(to)].contiguous(), of, to, group))
    out = rows.new_zeros(total, *rows.shape[1:])
    out[: sum(of)] = got
    return out
