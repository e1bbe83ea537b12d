"""Incremental decoding: what an op that mixes along the sequence does for a few new tokens and a cache of the past.

A body decodes `width` new tokens at positions offset, offset+1, ...; keys and values of the past stand in caches
of `capacity` tokens, which go in and come out (graphs are functional)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specc.compiler.ops import OPS
from specc.compiler.ops.declare import mixed_letters
from specc.compiler.ops.row import Op
from specc.compiler.program import Body, Eqn
from specc.compiler.rules import Binding, match
from specc.compiler.types import Dim, TensorType
from specc.spec.expr import parse


@dataclass
class Decoding:
    """The state of one traced decoding step: `end` is the number of valid tokens after it."""

    seq: str
    capacity: int
    offset: Tensor
    end: Tensor
    keys: Mapping[str, Tensor] = field(default_factory=dict)  # attributes of all cached tokens, [B capacity]
    caches: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def places(self, width: int) -> Tensor:
        """Indices of the new tokens."""
        return self.offset + torch.arange(width)

    def cached(self, name: str, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The caches with the new keys and values [B width K E] written at their places."""
        old_k, old_v = self.caches[name]
        at = self.places(k.shape[1])
        self.caches[name] = old_k.index_copy(1, at, k), old_v.index_copy(1, at, v)
        return self.caches[name]


def cached_eqns(body: Body, seq: str) -> list[Eqn]:
    """The attentions of a body whose keys are the decoded sequence."""
    types = body.types()
    return [e for e in body.eqns if e.op == "attend" and types[e.ins[1] or ""].dims[-3].name == seq]


def cache_types(body: Body, seq: str) -> list[tuple[str, TensorType, TensorType]]:
    """Name and types (with the sequence's own dim) of each cache."""
    types = body.types()
    return [(e.outs[0], types[e.ins[1] or ""], types[e.ins[2] or ""]) for e in cached_eqns(body, seq)]


def key_attributes(body: Body, seq: str) -> list[str]:
    """Operands of the body that masks read as attributes of keys."""
    found: dict[str, None] = {}
    for e in body.eqns:
        if e.op == "mask" and e.attrs["q"].name == seq:
            found |= {i: None for i, n in zip(e.ins, e.attrs["names"], strict=True) if i and n.startswith("k.")}
    return list(found)


def refusal(bodies: Sequence[Body], seq: str, own: Mapping[str, Op] | None = None) -> str:
    """Why a program cannot decode step by step, or nothing; `own` are the user's ops."""
    for body in bodies:
        types = body.types()
        for e in body.eqns:
            if own and e.op in own and mixes(own[e.op], [types[i] for i in e.ins if i], seq):
                return f"`{e.op}` ({e.path}) mixes tokens along '{seq}' by its rule '{own[e.op].rule}'"
            if any(_is_along(d, seq) for d in _mixed(e, [types[i] for i in e.ins if i])):
                return f"`{e.op}` ({e.path}) mixes tokens along '{seq}' and has no incremental rule"
        for e in cached_eqns(body, seq):
            if not e.attrs.get("causal"):
                return f"`{e.op}` ({e.path}) lets tokens see later ones: its mask is not `causal` nor `causal & ...`"
    return ""


def _mixed(e: Eqn, ins: Sequence[TensorType]) -> Sequence[Dim]:
    """Dims along which an op lets tokens see each other. Attention to its own sequence has caches; of one under another
    name there are none."""
    match OPS[e.op].mixes if e.op in OPS else "":
        case "over":
            over = e.attrs.get("over")
            return [ins[0].dims[-1]] if over is None else over if isinstance(over, list | tuple) else [over]
        case "summed":
            return [d for t in ins for d in t.dims if d not in e.types[0].dims]
        case "last":
            return [ins[0].dims[-1]]
        case "space":
            return ins[0].dims[1:]
        case "keys":
            return [d for d in (ins[1].dims[-3],) if d.of]
    return []


def _is_along(d: Dim, seq: str) -> bool:
    """Whether a dim is that of the sequence, under whatever name, or made of it."""
    return d.name == seq or (bool(d.of) and seq in parse(d.of).names())


def mixes(row: Op, ins: Sequence[TensorType], seq: str) -> bool:
    """Whether an op of the user's may let tokens along a dim see each other: only an independent letter says no."""
    binding: Binding = {}
    for pattern, t in zip(row.parsed.ins, ins, strict=True):
        match(pattern, t.dims, binding)
    mixed = mixed_letters(row)
    return any(d.name == seq for letter, dims in binding.items() if letter in mixed for d in dims)
