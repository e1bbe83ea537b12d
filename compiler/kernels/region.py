"""A region: equations of a body that one kernel computes row by row, traced into ATen graphs of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.lower.bodies import fake
from specc.compiler.lower.run import run_body
from specc.compiler.partition import clean
from specc.compiler.program import Body, Eqn, Var
from specc.compiler.types import Dim, TensorType

aten = torch.ops.aten
# What core ATen keeps whole, but a kernel writes out.
MORE = (
    aten.gelu, aten.gelu_backward, aten.silu, aten.silu_backward, aten._softmax, aten._softmax_backward_data,
    aten.sigmoid_backward, aten.tanh_backward, aten.softplus, aten.softplus_backward, aten.threshold_backward,
    aten.native_layer_norm, aten.native_layer_norm_backward, aten.split, aten.split_with_sizes, aten.unbind,
    aten.stack, aten.select_backward, aten.addcmul, aten.addcdiv, aten.square, aten.logsumexp,
)  # fmt: skip
# What an emitter reads as a place along a row, which core ATen would write as a copy into zeros.
KEPT = (
    aten.slice_backward.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
    aten.stack.default, aten.select_backward.default,
)  # fmt: skip
FIRST_STAND_IN = 1009


@dataclass(frozen=True)
class Region:
    """`body` has no parameters: its ins are all that the kernel reads, its outs all that it writes.

    `rows` are the dims of the rows, outermost first, and `column` the one along which a row lies."""

    body: Body
    rows: tuple[Dim, ...]
    column: Dim

    @property
    def places(self) -> list[str]:
        """Where its equations stand in the spec, without folders."""
        return [f"{e.stands_at}: {e.op}" for e in self.body.eqns]


@dataclass(frozen=True)
class Traced:
    """A region as graphs. `whole` is its forward pass in the ops that ATen would run; `forward` and `backward` are in
    simple ops. A dim of rows has a size that nothing else has: `axes` says which one it is.

    `backward(*ins, *cotangents)` gives the gradients of the ins at `wanted`; its cotangents are of the outs at
    `given`."""

    whole: fx.GraphModule
    forward: fx.GraphModule
    backward: fx.GraphModule | None
    axes: Mapping[int, int]
    wanted: tuple[int, ...]
    given: tuple[int, ...]


def trace(region: Region, compute: torch.dtype, forward_only: bool = False) -> Traced:
    """The graphs of a region."""
    sizes = stand_ins(region)
    assert region.column.size is not None
    body = with_sizes(region.body, {**sizes, region.column.name: region.column.size})
    mode = FakeTensorMode()
    ins = [fake(v.type, {}, compute, mode) for v in body.ins]

    def run(*xs: Tensor) -> list[Tensor]:
        return run_body(body, xs, (), {})

    with mode:
        whole = make_fx(run)(*ins)
        forward = simple(run, ins)
        axes = {n: i for i, n in enumerate(sizes.values())}
        if forward_only:
            return Traced(whole, forward, None, axes, (), ())
        wanted = tuple(i for i, x in enumerate(ins) if x.is_floating_point())
        outs = run(*(x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(ins)))
        given = tuple(i for i, o in enumerate(outs) if o.requires_grad)
        backward = simple(vjp(run, wanted, len(ins)), [*ins, *(torch.empty_like(outs[i].detach()) for i in given)])
    return Traced(whole, forward, backward if given else None, axes, wanted if given else (), given)


def stand_ins(region: Region) -> dict[str, int]:
    """A size for each dim of rows: primes, so that a size tells its dim."""
    column = region.column.size
    assert column is not None, f"the column {region.column} has no size"
    primes = (p for p in _primes() if column % p)
    return {d.name: next(primes) for d in region.rows if d.size != 1}


def _primes() -> Iterator[int]:
    n = FIRST_STAND_IN
    while True:
        if all(n % k for k in range(2, math.isqrt(n) + 1)):
            yield n
        n += 2


def with_sizes(body: Body, sizes: Mapping[str, int]) -> Body:
    """The body with other sizes of the named dims, in types and in parameters of its equations."""
    ins = tuple(replace(v, type=_put(v.type, sizes)) for v in body.ins)
    eqns = tuple(replace(e, types=_put(e.types, sizes), attrs=_put(dict(e.attrs), sizes)) for e in body.eqns)
    return replace(body, ins=ins, eqns=eqns)


def _put(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, Dim):
        return Dim(value.name, sizes[value.name]) if value.name in sizes else value
    if isinstance(value, TensorType):
        return value.with_dims(*(_put(d, sizes) for d in value.dims))
    if isinstance(value, dict):
        return {k: _put(v, sizes) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_put(v, sizes) for v in value)
    return value


def simple(run: Callable[..., list[Tensor]], ins: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of a function in the ops that a kernel has formulas for."""
    return clean(make_fx(run, decomposition_table=dict(_decompositions()))(*ins))


@cache
def _decompositions() -> Mapping[Any, Callable[..., Any]]:
    table = {**core_aten_decompositions(), **get_decompositions(MORE)}
    return {target: rule for target, rule in table.items() if target not in KEPT}


def vjp(run: Callable[..., list[Tensor]], wanted: Sequence[int], n_ins: int) -> Callable[..., list[Tensor]]:
    def pulled_back(*xs: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(xs[:n_ins])]
            ends = [o for o in run(*leaves) if o.requires_grad]
            at = [leaves[i] for i in wanted]
            if not ends:
                return []
            grads = torch.autograd.grad(ends, at, list(xs[n_ins:]), allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, at, strict=True)]

    return pulled_back


def sub_body(eqns: Sequence[Eqn], types: Mapping[str, TensorType], outs: Sequence[str]) -> Body:
    """A body of some equations of another, in the names x0, x1, ... for what it reads and v0, v1, ... inside."""
    made = [o for e in eqns for o in e.outs]
    read = list(dict.fromkeys(i for e in eqns for i in e.ins if i and i not in made))
    names = {n: f"x{k}" for k, n in enumerate(read)} | {n: f"v{k}" for k, n in enumerate(made)}
    renamed = tuple(
        replace(e, ins=tuple(names[i] if i else None for i in e.ins), outs=tuple(names[o] for o in e.outs))
        for e in eqns
    )
    return Body("region", tuple(Var(names[n], types[n]) for n in read), (), renamed, tuple(names[o] for o in outs))
