"""Attention of a part of the queries by its kernel: to the keys that it meets in a ring, or to all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.placed_attention import around, attributes, own_heads, ring_mask
from specc.compiler.lower.placed_ops import spread
from specc.compiler.lower.ring import Blocks, Pair, Rows


def part_impl(name: str) -> Impl:
    """The kernel holds the predicate and the scale; a mask is there to say of which attributes it is made."""
    blocks = blocks_of(name)

    def call(e: Local, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if spread(e).using("kv_heads"):
            k, v = own_heads(e, q, k, v)
        rings = spread(e).using("ring")
        if not rings:
            apply: Callable[..., Tensor] = _Part.apply
            return apply(q, k, v, name, *to_all_keys(e))
        seen = ring_mask(e, rings[0], mask)
        assert seen is not None
        return around(e, rings[0], seen, (q, k, v), blocks)

    return call


def to_all_keys(e: Local) -> list[Tensor]:
    """What the op takes behind this rank's queries and all keys and values."""
    s, mask = spread(e), e.eqn.ins[3] if len(e.eqn.ins) > 3 else None
    made = s.made[mask].eqn if mask else None
    found = attributes(e, made.ins, made.attrs["names"], s.using("gather_kv")[0]) if made else {}
    return [s.places_of_operand(0, 1)[:1], torch.zeros(1, dtype=torch.int64), *found.values()]


class _Part(torch.autograd.Function):
    """q [B s H E], k [B T K E], v [B T K F] -> [B s H F]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, name: str, *rest: Tensor) -> Tensor:
        y, lse = getattr(torch.ops.specc, name)(q, k, v, *rest)
        y = y.to(q.dtype)
        ctx.save_for_backward(y, lse, q, k, v, *rest)
        ctx.name = name
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, lse, *given = ctx.saved_tensors
        delta = (y.float() * grads[0].float()).sum(-1).transpose(1, 2)
        found = getattr(torch.ops.specc, f"{ctx.name}_backward")(*given, grads[0], lse, delta)
        return *(d.to(y.dtype) for d in found), None, *(None for _ in given[3:])


def blocks_of(name: str) -> Blocks:
    """The pairs of a ring by the ops of a file."""

    def forward(q: Tensor, k: Tensor, v: Tensor, pair: Pair, scale: float) -> tuple[Tensor, Tensor]:
        y, lse = getattr(torch.ops.specc, name)(*_operands(q, k, v, pair))
        return _grouped(y, q), lse.reshape(q.shape[:-1])

    def backward(rows: Rows, k: Tensor, v: Tensor, pair: Pair, scale: float) -> tuple[Tensor, Tensor, Tensor]:
        of_rows = _tokens_first(rows.d), rows.lse.flatten(1, 2), rows.delta.flatten(1, 2)
        found = getattr(torch.ops.specc, f"{name}_backward")(*_operands(rows.q, k, v, pair), *of_rows)
        return _grouped(found[0], rows.q), found[1].transpose(1, 2), found[2].transpose(1, 2)

    return Blocks(forward, backward)


def _operands(q: Tensor, k: Tensor, v: Tensor, pair: Pair) -> list[Tensor]:
    """What the ops take: q [B K G s E], k [B K t E] and v [B K t F] with tokens first, and who sees whom."""
    attributes = [x.expand(q.shape[0], -1) for x in pair.attributes().values()]
    return [_tokens_first(q), k.transpose(1, 2), v.transpose(1, 2), *pair.firsts(), *attributes]


def _tokens_first(x: Tensor) -> Tensor:
    """[B K G s E] -> [B s H E]."""
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _grouped(x: Tensor, like: Tensor) -> Tensor:
    """[B s H F] -> [B K G s F]."""
    b, kv_heads, groups, s, _ = like.shape
    return x.reshape(b, s, kv_heads, groups, -1).permute(0, 2, 3, 1, 4)
