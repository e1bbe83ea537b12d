"""Implementations: moving, joining and picking."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specc.compiler.lower.local import Impl, Local, align
from specc.compiler.lower.permute import copied, permuted
from specc.compiler.ops.shape import groups, joined, solve_letters


def rearrange(e: Local, x: Tensor) -> Tensor:
    left, _, right = str(e.attr("pattern")).partition("->")
    letters = solve_letters(groups(left), e.dims(0), dict(e.attr("dims") or {}))
    order = [w for g in groups(left) for w in g]
    target = [w for g in groups(right) for w in g]
    return x.reshape([e.size(letters[w]) for w in order]).permute([order.index(w) for w in target]).reshape(e.shape())


def concat(e: Local, *xs: Tensor) -> Tensor:
    at, found = joined([t for t in e.ins if t is not None], e.attr("over"))
    parts = []
    for i, (x, spots) in enumerate(zip(xs, found, strict=True)):
        want = list(e.out.dims)
        for d, spot in zip(e.dims(i), spots, strict=True):
            assert spot is not None
            want[spot] = d
        x = align(x, e.dims(i), tuple(want))
        x = x.reshape([1] * (len(want) - x.ndim) + list(x.shape))
        parts.append(x.expand([x.shape[n] if n == at else e.size(d) for n, d in enumerate(want)]))
    return torch.cat(parts, at)


def split(e: Local, x: Tensor) -> tuple[Tensor, ...]:
    over = e.attr("over")
    at = e.axis(0, over) if over else x.ndim - 1
    return torch.split(x, [e.size(d) for d in e.attr("into")], at)


def slice_(e: Local, x: Tensor) -> Tensor:
    return x.narrow(e.axis(0, e.attr("over")), e.attr("start"), e.size(e.attr("length")))


def pick(e: Local, x: Tensor) -> Tensor:
    return x.select(e.axis(0, e.attr("over")), e.attr("at"))


def unbind(e: Local, x: Tensor) -> tuple[Tensor, ...]:
    return torch.unbind(x, e.axis(0, e.attr("over")))


def take(e: Local, x: Tensor, index: Tensor) -> Tensor:
    at = e.axis(0, e.attr("over"))
    if at == 0 or e.dims(1)[:at] != e.dims(0)[:at]:
        return x.index_select(at, index.reshape(-1)).reshape(e.shape())
    batch, rest = x.shape[:at], x.shape[at + 1 :]
    flat = index.reshape(*batch, -1)
    n = flat.shape[-1]
    wide = flat.reshape(*batch, n, *[1] * len(rest)).expand(*batch, n, *rest)
    return x.gather(at, wide).reshape(e.shape())


def rename(e: Local, x: Tensor) -> Tensor:
    return x


def index(e: Local) -> Tensor:
    n = e.size(e.attr("of"))
    return e.decoding.places(n) if e.decoding and e.attr("of").name == e.decoding.seq else e.places(0)


def expand(e: Local, x: Tensor) -> Tensor:
    return align(x, e.dims(0), e.out.dims).expand(e.shape())


def upsample(e: Local, x: Tensor) -> Tensor:
    factor, space = int(e.attr("factor")), x.shape[2:]
    x = x.reshape(*x.shape[:2], *(n for s in space for n in (s, 1)))
    x = x.expand(*x.shape[:2], *(n for s in space for n in (s, factor)))
    return x.reshape(*x.shape[:2], *(s * factor for s in space))


def param(e: Local, weight: Tensor) -> Tensor:
    return weight


def stack(e: Local, *xs: Tensor) -> Tensor:
    return torch.stack(xs)


def topk(e: Local, x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, e.size(e.eqn.types[0].dims[-1]), dim=-1)
    return values, indices


def dispatch(e: Local, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [... D], chosen [... k] -> rows sorted by expert [M D], the copy each row is [M], each expert's end [N]."""
    k = chosen.shape[-1]
    tokens = x.reshape(math.prod(chosen.shape[:-1]), *x.shape[chosen.ndim - 1 :])
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    experts = torch.arange(e.shape(2)[0], device=flat.device)
    ends = (flat[:, None] == experts).sum(0).cumsum(0)
    return copied(tokens, order, torch.argsort(order), k), order, ends


def row_gates(e: Local, gates: Tensor, order: Tensor) -> Tensor:
    """gates [... k] -> those of the rows [M]."""
    return permuted(gates.reshape(-1), order, torch.argsort(order))


def combine(e: Local, rows: Tensor, order: Tensor, chosen: Tensor) -> Tensor:
    """The inverse of dispatch: copies of a token, of which `chosen` [... k] has a number each, are summed."""
    copies = permuted(rows, torch.argsort(order), order).reshape(*chosen.shape, *rows.shape[1:])
    return copies.sum(chosen.ndim - 1)


IMPLS: dict[str, Impl] = {
    "rearrange": rearrange, "concat": concat, "split": split, "slice": slice_, "pick": pick, "unbind": unbind,
    "take": take, "rename": rename, "index": index, "expand": expand, "upsample": upsample, "param": param,
    "stack": stack, "topk": topk, "dispatch": dispatch, "row_gates": row_gates,
    "combine": combine,
}  # fmt: skip
