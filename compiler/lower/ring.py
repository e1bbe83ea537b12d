"""Ring attention (arXiv:2310.01889): keys and values go around the ranks, and each adds what its queries see of them.

Where no query sees a later key, sequences lie in zigzag: rank r has the chunks r and 2n-1-r, its halves. Of the halves
of rank s it sees two pairs: (own second, first of s), and if s < r (own first, first of s), else (own second, second
of s). So all ranks compute alike, and which pair it is follows from coordinates: a graph serves every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specc.compiler.lower.attend import times, transposed_times
from specc.compiler.lower.collectives import c10d, group_name
from specc.compiler.lower.exchange import shift
from specc.compiler.lower.local import wide
from specc.compiler.lower.pointwise import formula
from specc.compiler.placement.types import Axis
from specc.spec.expr import Expr

NEVER = -1e30  # log-sum-exp of a query that sees nothing: finite, so that merging makes no NaN
Half = int | Tensor


@dataclass(frozen=True)
class Seen:
    """Who sees whom. A rank's `length` tokens are one or two `halves`; attributes are [B or 1, tokens], of the rank's
    queries and of all keys; `dense` is a mask [B or 1, tokens, all tokens] instead."""

    ranks: int
    halves: int
    length: int
    coordinate: Tensor
    causal: bool
    predicate: Expr | None = None
    attributes: Mapping[str, Tensor] = field(default_factory=dict)
    dense: Tensor | None = None

    @property
    def chunk(self) -> int:
        return self.length // self.halves

    def pairs(self, turn: int) -> list[Pair]:
        """Halves of queries and keys that meet in a turn."""
        if self.halves == 1:
            return [Pair(self, turn, 0, 0, self.causal)]
        if turn == 0:
            return [Pair(self, 0, 0, 0, True), Pair(self, 0, 1, 0, False), Pair(self, 0, 1, 1, True)]
        other = (self.source(turn) > self.coordinate).long()
        return [Pair(self, turn, 1, 0, False), Pair(self, turn, other, other, False)]

    def source(self, turn: int) -> Tensor:
        """The rank whose keys are here in a turn."""
        return (self.coordinate - turn) % self.ranks

    def first(self, rank: Tensor, half: Half) -> Tensor:
        """Index of the first token of a rank's half."""
        at = rank if self.halves == 1 else torch.where(_is(half, 0), rank, 2 * self.ranks - 1 - rank)
        return at * self.chunk

    def of_source(self, x: Tensor, source: Tensor) -> Tensor:
        """Of all tokens, along the last dim, those of a rank."""
        return x.reshape(*x.shape[:-1], self.ranks, self.length).index_select(-2, source).squeeze(-2)

    def half(self, x: Tensor, half: Half, dim: int = -1) -> Tensor:
        return chosen(list(torch.split(x, self.chunk, dim)), half)


@dataclass(frozen=True)
class Pair:
    """Halves of queries and keys that meet in a turn; `crosses` says that some of these keys may be later."""

    seen: Seen
    turn: int
    q: Half
    k: Half
    crosses: bool

    def firsts(self) -> tuple[Tensor, Tensor]:
        """Indices of the first query and of the first key."""
        seen = self.seen
        return seen.first(seen.coordinate, self.q), seen.first(seen.source(self.turn), self.k)

    def attributes(self) -> dict[str, Tensor]:
        """Those of the queries here and of the keys here, [B or 1, tokens]."""
        seen = self.seen
        return {
            n: seen.half(seen.of_source(x, seen.source(self.turn)), self.k)
            if n.startswith("k.")
            else seen.half(x, self.q)
            for n, x in seen.attributes.items()
        }

    def mask(self) -> Tensor | None:
        """[B or 1, queries, keys], true where a query sees a key; None if all do."""
        seen = self.seen
        if seen.dense is not None:
            return seen.half(seen.half(seen.of_source(seen.dense, seen.source(self.turn)), self.k), self.q, -2)
        q, k = (first + torch.arange(seen.chunk) for first in self.firsts())
        if seen.predicate is None:
            return (q[:, None] >= k[None, :])[None] if self.crosses else None
        values: dict[str, Tensor | int | float | bool] = {"q.index": q[:, None], "k.index": k[None, :]}
        values |= {n: x.unsqueeze(-2 if n.startswith("k.") else -1) for n, x in self.attributes().items()}
        found = formula(seen.predicate, values)
        if not isinstance(found, Tensor):
            return None if found else torch.zeros(1, seen.chunk, seen.chunk, dtype=torch.bool)
        return found.expand((-1 if found.ndim > 2 else 1, seen.chunk, seen.chunk))


def _is(half: Half, i: int) -> Tensor:
    return half == i if isinstance(half, Tensor) else torch.full((1,), half == i)


def chosen(parts: list[Tensor], half: Half) -> Tensor:
    return torch.stack(parts).index_select(0, half).squeeze(0) if isinstance(half, Tensor) else parts[half]


def put(parts: list[Tensor], half: Half, new: Callable[[Tensor], Tensor]) -> None:
    """Replace one part; of which one a tensor decides, all are computed and one is taken."""
    for i, old in enumerate(parts):
        if isinstance(half, Tensor):
            parts[i] = torch.where((half == i).reshape(()), new(old), old)
        elif half == i:
            parts[i] = new(old)


@dataclass(frozen=True)
class Rows:
    """Some queries, and for each the gradient of its result, its log-sum-exp, and result times gradient."""

    q: Tensor
    d: Tensor
    lse: Tensor
    delta: Tensor


@dataclass(frozen=True)
class Blocks:
    """How a pair's queries [B K G s E] attend to its keys [B K t E] and values [B K t F]: the result [B K G s F] with
    the log-sum-exp of its scores [B K G s], NEVER of a query that sees none; and the gradients of all three."""

    forward: Callable[[Tensor, Tensor, Tensor, Pair, float], tuple[Tensor, Tensor]]
    backward: Callable[[Rows, Tensor, Tensor, Pair, float], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Ring:
    axis: Axis
    scale: float | None
    seen: Seen
    blocks: Blocks

    def send(self, x: Tensor, after: Tensor | None = None) -> Tensor:
        """Start to send; `arrived` waits."""
        y: Tensor = shift(x, self.axis.size, group_name(self.axis), after)
        return y

    def arrived(self, sent: Tensor, like: Tensor) -> Tensor:
        y: Tensor = c10d.wait_tensor(sent)
        return y.reshape(like.shape)


def ring_attend(q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
    """q [B S H E], k [B S K E], v [B S K F], each this rank's part of S -> [B S H F]."""
    b, s, heads, width = q.shape
    groups = heads // k.shape[2]
    q5 = q.reshape(b, s, k.shape[2], groups, width).permute(0, 2, 3, 1, 4)
    scale = ring.scale or width**-0.5
    apply: Callable[..., Tensor] = _Ring.apply
    y = apply(q5, k.transpose(1, 2), v.transpose(1, 2), ring, scale)
    return y.permute(0, 3, 1, 2, 4).reshape(b, s, heads, v.shape[-1])


class _Ring(torch.autograd.Function):
    """q [B K G S E], k [B K S E], v [B K S F] -> [B K G S F]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring, scale: float) -> Tensor:
        seen = ring.seen
        qs = halves(q, 3, seen)
        out = [wide(x).new_zeros(*x.shape[:-1], v.shape[-1]) for x in qs]
        lse = [wide(x).new_full(x.shape[:-1], NEVER) for x in qs]
        kv, widths = torch.cat([k, v], -1), [k.shape[-1], v.shape[-1]]
        for turn in range(seen.ranks):
            sent = ring.send(kv) if turn + 1 < seen.ranks else None
            ks, vs = (halves(x, 2, seen) for x in torch.split(kv, widths, -1))
            for pair in seen.pairs(turn):
                found = ring.blocks.forward(chosen(qs, pair.q), chosen(ks, pair.k), chosen(vs, pair.k), pair, scale)
                merge(out, lse, pair.q, *found)
            kv = ring.arrived(sent, kv) if sent is not None else kv
        result = torch.cat(out, 3).to(q.dtype)
        ctx.save_for_backward(q, k, v, result, torch.cat(lse, 3))
        ctx.ring, ctx.scale = ring, scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        ring: Ring = ctx.ring
        seen, d_out = ring.seen, grads[0]
        delta = (wide(out) * wide(d_out)).sum(-1)
        qs, ds, zs, deltas = (halves(x, 3, seen) for x in (q, d_out, lse, delta))
        d_q = [torch.zeros_like(wide(x)) for x in qs]
        kv, widths = torch.cat([k, v], -1), [k.shape[-1], v.shape[-1]]
        d_kv = torch.zeros_like(wide(kv))
        for turn in range(seen.ranks):
            sent = ring.send(kv, delta) if turn + 1 < seen.ranks else None
            ks, vs = (halves(x, 2, seen) for x in torch.split(kv, widths, -1))
            d_k, d_v = (halves(x, 2, seen) for x in torch.split(d_kv, widths, -1))
            for pair in seen.pairs(turn):
                rows = Rows(*(chosen(x, pair.q) for x in (qs, ds, zs, deltas)))
                found = ring.blocks.backward(rows, chosen(ks, pair.k), chosen(vs, pair.k), pair, ctx.scale)
                for parts, at, more in zip((d_q, d_k, d_v), (pair.q, pair.k, pair.k), found, strict=True):
                    put(parts, at, lambda old, more=more: old + more)  # type: ignore[misc]
            d_kv = torch.cat([torch.cat(d_k, 2), torch.cat(d_v, 2)], -1)
            if seen.ranks > 1:
                d_kv = ring.arrived(ring.send(d_kv), d_kv)  # at the end it is home
            kv = ring.arrived(sent, kv) if sent is not None else kv
        home = [x.to(q.dtype) for x in torch.split(d_kv, widths, -1)]
        return torch.cat(d_q, 3).to(q.dtype), home[0], home[1], None, None


def halves(x: Tensor, dim: int, seen: Seen) -> list[Tensor]:
    return list(torch.split(x, seen.chunk, dim))


def block(q: Tensor, k: Tensor, v: Tensor, pair: Pair, scale: float) -> tuple[Tensor, Tensor]:
    s = scores(q, k, pair.mask(), scale)
    top = s.amax(-1, keepdim=True).clamp(min=NEVER)
    p = (s - top).exp()
    total = p.sum(-1, keepdim=True)
    y = wide(times(p.to(v.dtype), v)) / total.clamp(min=1e-30)
    return y, torch.where(total > 0, top + total.clamp(min=1e-30).log(), NEVER).squeeze(-1)


def scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    s = times(wide(q) * scale, wide(k).transpose(2, 3))
    return s if mask is None else torch.where(mask[:, None, None], s, -math.inf)


def merge(out: list[Tensor], lse: list[Tensor], half: Half, y: Tensor, z: Tensor) -> None:
    """Add a block's result to that of the blocks before it."""
    before, known = chosen(out, half), chosen(lse, half)
    both = torch.logaddexp(known, z)
    merged = before * (known - both).exp()[..., None] + y * (z - both).exp()[..., None]
    put(out, half, lambda _: merged)
    put(lse, half, lambda _: both)


def block_gradient(rows: Rows, k: Tensor, v: Tensor, pair: Pair, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    p = (scores(rows.q, k, pair.mask(), scale) - rows.lse[..., None]).exp()
    d_p = wide(times(rows.d, v.transpose(2, 3)))
    d_s = (p * (d_p - rows.delta[..., None]) * scale).to(k.dtype)
    return (
        wide(times(d_s, k)), wide(transposed_times(d_s, rows.q)), wide(transposed_times(p.to(v.dtype), rows.d)),
    )  # fmt: skip


DENSE = Blocks(block, block_gradient)  # scores of a pair are whole
