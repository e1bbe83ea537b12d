"""Attention for CPUs as products over blocks of queries: causal blocks skip the keys that come later.

The scores of a block are whole, so that products are large and what stands between them is a chain that a compiler
fuses. Keys and values of grouped heads are not repeated: a group's queries are the rows of one product. The backward
recomputes the weights of a block, so that nothing of length times length is kept (arXiv:2205.14135)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specc.compiler.lower.local import wide

ROWS = 128  # queries of a block, or more,
MAX_BLOCKS = 8  # so that a graph has no more blocks than this,
MAX_SCORES = 1 << 24  # and if the scores of a block are no more than this


@dataclass(frozen=True)
class Blocks:
    """How the queries are cut; `causal` says that no query sees a later key."""

    rows: int
    scale: float
    causal: bool

    def seen(self, start: int, queries: int, keys: int) -> tuple[slice, int]:
        """A block's queries, and how many keys they can see."""
        end = min(start + self.rows, queries)
        return slice(start, end), min(end, keys) if self.causal else keys


def block_rows(rows_a_query: int, queries: int, keys: int) -> int | None:
    """Queries of a block; None if blocks of that size would not fit. A query has a row for each batch and head."""
    rows = min(queries, max(ROWS, -(-queries // MAX_BLOCKS)))
    return rows if rows_a_query * rows * keys <= MAX_SCORES else None


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, blocks: Blocks) -> Tensor:
    """q [B K G S E], k [B K T E], v [B K T F], mask [B or 1, S T] -> [B K G S F]."""
    apply: Callable[..., Tensor] = _Attend.apply
    return apply(q, k, v, mask, blocks)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, blocks: Blocks) -> Tensor:
        out: list[Tensor] = []
        ctx.save_for_backward(q, k, v, mask)
        ctx.blocks = blocks
        k, v = k.contiguous(), v.contiguous()  # one copy, of which blocks are views
        for start in range(0, q.shape[3], blocks.rows):
            rows, n = blocks.seen(start, q.shape[3], k.shape[2])
            p = _weights(q[:, :, :, rows], k[:, :, :n], mask, rows, blocks)
            out.append(times(p.to(v.dtype), v[:, :, :n]))
        return _where_any(torch.cat(out, 3), mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, mask = ctx.saved_tensors
        blocks, d_y = ctx.blocks, _where_any(grads[0], mask)
        k, v = k.contiguous(), v.contiguous()
        d_q: list[Tensor] = []
        d_k: list[Tensor] = []
        d_v: list[Tensor] = []
        for start in range(0, q.shape[3], blocks.rows):
            rows, n = blocks.seen(start, q.shape[3], k.shape[2])
            q_rows, d_rows = q[:, :, :, rows], d_y[:, :, :, rows]
            p = _weights(q_rows, k[:, :, :n], mask, rows, blocks)
            d_p = wide(times(d_rows, v[:, :, :n].transpose(2, 3)))
            d_s = torch.ops.aten._softmax_backward_data.default(d_p, p, -1, p.dtype).to(q.dtype)
            d_q.append(times(d_s, k[:, :, :n]) * blocks.scale)
            d_k.append(transposed_times(d_s, q_rows) * blocks.scale)
            d_v.append(transposed_times(p.to(v.dtype), d_rows))
        return torch.cat(d_q, 3), _summed(d_k, blocks.rows), _summed(d_v, blocks.rows), None, None


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, rows: slice, blocks: Blocks) -> Tensor:
    """Softmax [B K G s n] of the scaled scores, in fp32 or wider; uniform where a query sees nothing."""
    n = k.shape[2]
    s = times(wide(q) * blocks.scale, wide(k).transpose(2, 3))
    if mask is not None:
        return torch.where(mask[:, None, None, rows, :n], s, torch.finfo(s.dtype).min).softmax(-1)
    if not blocks.causal:
        return s.softmax(-1)
    queries = torch.arange(rows.start, rows.stop, device=q.device)
    return torch.where(queries[:, None] >= torch.arange(n, device=q.device), s, -math.inf).softmax(-1)


def _where_any(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B K G S j], zeros for the queries that see nothing."""
    return x if mask is None else torch.where(mask.any(-1)[:, None, None, :, None], x, 0.0)


def times(x: Tensor, y: Tensor) -> Tensor:
    """x [B K G s i] times y [B K i j], as a batch of B K products of G s rows."""
    b, k, g, s, i = x.shape
    return torch.bmm(x.reshape(b * k, g * s, i), y.reshape(b * k, i, -1)).reshape(b, k, g, s, -1)


def transposed_times(x: Tensor, y: Tensor) -> Tensor:
    """x [B K G s n], y [B K G s j] -> [B K n j], summed over a group's queries."""
    b, k, g, s, n = x.shape
    product = torch.bmm(x.reshape(b * k, g * s, n).transpose(1, 2), y.reshape(b * k, g * s, -1))
    return product.reshape(b, k, n, -1)


def _summed(parts: list[Tensor], rows: int) -> Tensor:
    """The sum of gradients of the first keys, more keys in each: [B K n j] with n growing."""
    if all(p.shape[2] == parts[-1].shape[2] for p in parts):
        return _total(parts)
    pieces = [
        _total([p[:, :, i : i + rows] for p in parts if p.shape[2] > i]) for i in range(0, parts[-1].shape[2], rows)
    ]
    return torch.cat(pieces, 2)


def _total(parts: list[Tensor]) -> Tensor:
    total = wide(parts[0])
    for p in parts[1:]:
        total = total + wide(p)
    return total.to(parts[0].dtype)
