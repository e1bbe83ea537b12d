"""Attention whose heads or tokens are split over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specc.compiler.lower import attention
from specc.compiler.lower.collectives import step
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.placed_ops import spread
from specc.compiler.lower.ring import DENSE, Blocks, Ring, Seen, ring_attend
from specc.compiler.lower.spread import Setting, is_ordered
from specc.compiler.placement.placed import PlacedEqn
from specc.compiler.placement.reshard import Move
from specc.compiler.placement.types import Layout, R, S, V
from specc.compiler.types import Dim


def attend(e: Local, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    s = spread(e)
    if s.using("kv_heads"):
        k, v = own_heads(e, q, k, v)
    rings = s.using("ring")
    seen = ring_mask(e, rings[0], mask) if len(rings) == 1 and bias is None else None
    exact = e.attr("softmax") != "fp32" or q.dtype != torch.float64
    if seen is not None and exact:
        return around(e, rings[0], seen, (q, k, v), DENSE)
    for a in reversed(rings):
        k, v = (step(x, Move(a, S(x.ndim - 3), V), *s.axis(a)) for x in (k, v))
    if e.attr("causal", False) and not in_order(e):
        if mask is None:
            mask = (s.places_of_operand(0, q.ndim - 3)[:, None] >= key_places(e, rings)[None, :])[None]
        e = replace(e, eqn=replace(e.eqn, attrs={**e.eqn.attrs, "causal": False}))
    return attention.attend(e, q, k, v, mask, bias)


def in_order(e: Local) -> bool:
    """Whether the queries here are all of them, one after the other."""
    s, layout, type_ = spread(e), spread(e).placed.takes(0), spread(e).ins[0]
    assert layout is not None
    assert type_ is not None
    return is_ordered(layout, type_.dims, -3, s.setting.zigzag)


def key_places(e: Local, rings: list[int]) -> Tensor:
    s, layout, type_ = spread(e), spread(e).placed.takes(1), spread(e).ins[1]
    assert layout is not None
    assert type_ is not None
    at = len(type_.dims) - 3
    return s.setting.places(type_.dims[at], [a for a in s.split(layout, at) if a not in rings])


def own_heads(e: Local, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of whole keys and values, the heads that this rank's query heads use."""
    s, kinds = spread(e), [t for t in spread(e).ins[:2] if t]
    heads, kv_heads = (t.shape(s.setting.sizes)[-2] for t in kinds)
    group, mine = heads // kv_heads, q.shape[-2]
    first = s.places_of_operand(1, k.ndim - 2)[0]
    used = s.places_of_operand(0, q.ndim - 2) // group - first
    if group % mine == 0:
        used = used[:1]  # one head serves all
    elif mine % group == 0:
        used = used[::group]
    return k.index_select(-2, used), v.index_select(-2, used)


def cut_alone(placed: PlacedEqn, dims: Sequence[Dim], strategy: str, setting: Setting) -> bool:
    """Whether an axis with that strategy alone cuts the queries of an attention into parts that follow one another or
    lie in zigzag along it; `dims` are those of the queries."""
    at, layout = len(dims) - 3, placed.takes(0)
    assert layout is not None
    axes = [a for a, s in enumerate(placed.strategies) if s.name == strategy]
    if len(axes) != 1 or axes != [a for a, p in enumerate(layout) if p.kind == "S" and p.dim == at]:
        return False
    parts = setting.zigzag.get(dims[at].of or dims[at].name)
    return parts in (None, setting.mesh.axes[axes[0]].size)


def ring_mask(e: Local, ring: int, mask: Tensor | None) -> Seen | None:
    """Who sees whom, from attributes of tokens where the mask is made of such here; None if it takes another way."""
    s, name = spread(e), e.eqn.ins[3] if len(e.eqn.ins) > 3 else None
    type_ = s.ins[0]
    assert type_ is not None
    if not cut_alone(s.placed, type_.dims, "ring", s.setting):
        return None
    dim = type_.dims[-3]
    axis, coordinate = s.axis(ring)
    parts = s.setting.zigzag.get(dim.of or dim.name)
    length = type_.shape(s.setting.sizes)[-3] // axis.size
    causal = bool(e.attr("causal", False))
    seen = Seen(axis.size, 2 if parts else 1, length, coordinate, causal)
    if name is None or mask is None:
        return seen
    made = s.made.get(name)
    if made is None or made.eqn.op != "mask":
        return replace(seen, dense=mask.reshape(-1, *mask.shape[-2:]))
    found = attributes(e, made.eqn.ins, made.eqn.attrs["names"], ring)
    return replace(seen, predicate=made.eqn.attrs["predicate"], attributes=found)


def attributes(e: Local, ins: tuple[str | None, ...], names: list[str], ring: int) -> dict[str, Tensor]:
    """Attributes of this rank's queries and of all keys."""
    s, found = spread(e), dict[str, Tensor]()
    layout, type_ = s.placed.takes(0), s.ins[0]
    assert layout is not None
    assert type_ is not None
    for name, own in zip(names, ins, strict=True):
        assert own is not None
        dims = s.type_of(own).dims
        at = {d.name: i for i, d in enumerate(dims)}
        split = [type_.dims[p.dim].name if p.kind == "S" else "" for p in layout]
        places = [S(at[n]) if n in at and at[n] < len(dims) - 1 else R for n in split]
        if name.startswith("q."):
            places[ring] = S(len(dims) - 1)
        wanted: Layout = tuple(places)
        found[name] = s.value(own, wanted)
    return found


def around(e: Local, ring: int, seen: Seen, qkv: tuple[Tensor, Tensor, Tensor], blocks: Blocks) -> Tensor:
    axis, _ = spread(e).axis(ring)
    q4, k4, v4 = (x.reshape(-1, *x.shape[-3:]) for x in qkv)
    y = ring_attend(q4, k4, v4, Ring(axis, e.attr("scale"), seen, blocks))
    return y.reshape(e.shape())


IMPLS: dict[str, Impl] = {"attend": attend}
