"""Cuts the largest regions of row-wise equations out of a body, by what the equations are made of and not by name.

before: %7 = linear(..); %8 = expr(%x, %7); %9 = rms_norm(%8, %p)
after:  %7 = linear(..); %8, %9 = expr_rms_norm_1a2b3c4d5e(%x, %7, %p)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from specc.compiler.kernels.kernel import kernel_of
from specc.compiler.kernels.made import Made
from specc.compiler.kernels.region import Region, sub_body, trace
from specc.compiler.kernels.source import make
from specc.compiler.kernels.spread import NotRowWise
from specc.compiler.ops import OPS
from specc.compiler.program import Body, Eqn
from specc.compiler.types import Dim, TensorType, size_of
from specc.compiler.work import is_view

PLACED = "placed."  # before the op of an equation that looks beyond what a rank has (compiler.kernels.on_mesh)
IN_FP32, OF_FP32 = ("log_prob", "linear_log_prob", "one_hot"), ("expr", "sum", "min", "rearrange", "unbind")
LEAST = 2  # kernels of ATen that a region replaces; one alone gains nothing


@dataclass(frozen=True)
class Cut:
    """A body with its kernels as equations of their own. `places` are the lines of the spec that a kernel comes from;
    `left` says why a pointwise op is in none, and `ops` how many
    kernels of ATen the forward pass of each use of a region would be, by its first result."""

    body: Body
    made: dict[str, Made]
    regions: Mapping[str, Region]
    places: dict[str, list[str]]
    left: Mapping[str, str]
    ops: Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """Equations that one kernel may compute. `dims` are its rows' and, last, the column's; `is_along` says that it
    reads along the column, which then cannot be another."""

    eqns: tuple[int, ...]
    dims: tuple[Dim, ...]
    is_along: bool
    n_ops: int


def cut(body: Body, sizes: Mapping[str, int], compute: torch.dtype) -> Cut:
    """The body with its regions as kernels; `sizes` are those of open dims."""
    left: dict[str, str] = {}
    wide = set() if compute == torch.float32 else wide_values(body)
    parts = [_part(body, i, sizes, compute, wide, left) for i in range(len(body.eqns))]
    merged = merge([p or Part((i,), (), False, 0) for i, p in enumerate(parts)], body)
    made: dict[str, Made] = {}
    regions: dict[str, Region] = {}
    ops: dict[str, int] = {}
    eqns: list[Eqn] = []
    for part in merged:
        own = [body.eqns[i] for i in part.eqns]
        if part.n_ops < LEAST:
            eqns += own
            left |= {e.outs[0]: "alone, it gains nothing" for e in own if part.n_ops}
            continue
        region, outs = region_of(body, part), outs_of(body, part)
        result = make(region, trace(region, compute), compute)
        made[result.name], regions[result.name] = result, region
        ops[outs[0]] = part.n_ops
        eqns.append(kernel_eqn(body, own, outs, result.name))
    places = {n: r.places for n, r in regions.items()}
    return Cut(replace(body, eqns=tuple(eqns)), made, regions, places, left, ops)


def wide_values(body: Body) -> set[str]:
    """Values in fp32 where the model computes in less: log-probabilities of labels, ones of an index, and what formulas
    and sums make of them."""
    found: set[str] = set()
    for e in body.eqns:
        op = e.op.removeprefix(PLACED)
        if op in IN_FP32 or (op in OF_FP32 and found & set(e.ins)):
            found |= set(e.outs)
    return found


def _part(
    body: Body, i: int, sizes: Mapping[str, int], compute: torch.dtype, wide: set[str], left: dict[str, str]
) -> Part | None:
    """An equation as a part, if it is row-wise."""
    e, types = body.eqns[i], body.types()
    if (own := OPS.get(e.op.removeprefix(PLACED))) and e.op.startswith(PLACED) and own.flops == "pointwise":
        left[e.outs[0]] = "it looks beyond what its rank has"
        return None
    operands = [*e.types, *(types[n] for n in e.ins if n)]
    widest = max(operands, key=lambda t: len(t.dims))
    if e.op not in OPS or OPS[e.op].flops != "pointwise" or not widest.dims:
        return None
    if wide & set(e.ins):
        left[e.outs[0]] = "it computes in fp32"
        return None
    fixed = [t.letter for t in (OPS[e.op].parsed.ins or ((),))[0] if t.fixed]
    if fixed and fixed != [OPS[e.op].parsed.ins[0][-1].letter]:
        left[e.outs[0]] = "it mixes along more than the last dim"
        return None
    names = {d.name for d in widest.dims}
    if any(d.name not in names and d.size != 1 for t in operands for d in t.dims):
        left[e.outs[0]] = "it has dims beside those of its rows"
        return None
    column = widest.dims[-1]
    dims = (*widest.dims[:-1], replace(column, size=size_of(column, sizes)))
    part = Part((i,), dims, False, 0)
    try:
        traced = trace(region_of(body, part), compute, forward_only=True)
        kernel = kernel_of(traced.forward, traced.axes, "kernel", [f"y{k}" for k in range(len(e.outs))])
    except NotRowWise as reason:
        left[e.outs[0]] = str(reason)
        return None
    if kernel.spread.partial or kernel.spread.after:
        left[e.outs[0]] = "it sums over rows"
        return None
    n_ops = sum(n.op == "call_function" and not is_view(n) for n in traced.whole.graph.nodes)
    return replace(part, is_along=kernel.is_along_rows, n_ops=n_ops)


def merge(parts: Sequence[Part], body: Body) -> list[Part]:
    """Parts joined along values as far as rows and columns agree and no value would wait for itself; in order."""
    makers = {o: i for i, e in enumerate(body.eqns) for o in e.outs}
    of = dict(enumerate(parts))
    for i, e in enumerate(body.eqns):
        for name in e.ins:
            maker = makers.get(name or "")
            if maker is None or of[maker] is of[i]:
                continue
            joined = _join(of[maker], of[i])
            trial = {k: joined if p in (of[maker], of[i]) else p for k, p in of.items()} if joined else None
            if trial and in_order(trial, body, makers):
                of = trial
    order = in_order(of, body, makers)
    assert order is not None
    return order


def _join(a: Part, b: Part) -> Part | None:
    if not (a.n_ops and b.n_ops):
        return None
    small, big = sorted((a, b), key=lambda p: len(p.dims))
    rest = iter(big.dims)
    if not all(any(_agree(d, other) for other in rest) for d in small.dims):
        return None
    if small.is_along and small.dims[-1].name != big.dims[-1].name:
        return None
    return Part(tuple(sorted(a.eqns + b.eqns)), big.dims, a.is_along or b.is_along, a.n_ops + b.n_ops)


def _agree(a: Dim, b: Dim) -> bool:
    """Whether two dims are one: parts of a dim on a mesh have its name, and another size."""
    return a.name == b.name and (a.size is None or b.size is None or a.size == b.size)


def in_order(of: Mapping[int, Part], body: Body, makers: Mapping[str, int]) -> list[Part] | None:
    """The parts such that each comes behind those it reads; None if that cannot be."""
    waits = {
        p.eqns: {of[makers[n]].eqns for i in p.eqns for n in body.eqns[i].ins if n and n in makers} - {p.eqns}
        for p in of.values()
    }
    todo, done = list(dict.fromkeys(of.values())), dict[tuple[int, ...], Part]()
    while todo:
        ready = next((p for p in todo if waits[p.eqns] <= done.keys()), None)
        if ready is None:
            return None
        todo.remove(ready)
        done[ready.eqns] = ready
    return list(done.values())


def outs_of(body: Body, part: Part) -> list[str]:
    """What others read of a part."""
    elsewhere = {n for i, e in enumerate(body.eqns) if i not in part.eqns for n in e.ins} | set(body.outs)
    return [o for i in part.eqns for o in body.eqns[i].outs if o in elsewhere]


def region_of(body: Body, part: Part) -> Region:
    own = [body.eqns[i] for i in part.eqns]
    return Region(sub_body(own, body.types(), outs_of(body, part)), part.dims[:-1], part.dims[-1])


def kernel_eqn(body: Body, own: Sequence[Eqn], outs: Sequence[str], name: str) -> Eqn:
    """A kernel as an equation; it reads what its region's body does, in that order."""
    types: Mapping[str, TensorType] = body.types()
    made = [o for e in own for o in e.outs]
    read = dict.fromkeys(i for e in own for i in e.ins if i and i not in made)
    return Eqn(name, tuple(read), tuple(outs), tuple(types[o] for o in outs), {}, own[-1].path, own[-1].place)
