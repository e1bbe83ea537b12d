"""Parameters, FLOPs and bytes of a program, from the rules alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from specc.compiler.ops import OPS
from specc.compiler.ops.row import Op
from specc.compiler.program import Body, Eqn, Program
from specc.compiler.types import Dim, TensorType, size_of


@dataclass(frozen=True)
class Cost:
    """Forward work of an equation, body or program: FLOPs (a multiply-add is two) and bytes touched."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


def program_cost(program: Program, sizes: Mapping[str, int], itemsize: int = 4) -> Cost:
    """Forward cost of one microbatch."""
    each = {name: body_cost(body, sizes, itemsize) for name, body in program.bodies.items()}
    total = Cost()
    for call in program.calls:
        total += each[call.body]
    return total


def body_cost(body: Body, sizes: Mapping[str, int], itemsize: int = 4) -> Cost:
    types = body.types()
    total = Cost()
    for e in body.eqns:
        total += eqn_cost(e, [types[i] if i else None for i in e.ins], sizes, itemsize)
    return total


def eqn_cost(e: Eqn, ins: list[TensorType | None], sizes: Mapping[str, int], itemsize: int) -> Cost:
    row = OPS.get(e.op)
    out = sum(t.numel(sizes) for t in e.types)
    touched = (out + sum(t.numel(sizes) for t in ins if t)) * itemsize
    kind = row.flops if row else "pointwise"
    if kind == "none":
        return Cost(0.0, touched)
    if kind == "pointwise":
        return Cost(float(out), touched)
    return Cost(_contracted(e, row, ins, sizes), touched)


def _contracted(e: Eqn, row: Op | None, ins: list[TensorType | None], sizes: Mapping[str, int]) -> float:
    """2 x the product of all distinct dims; attention has two products, a grouped product one row a token."""
    present = [t for t in ins if t is not None]
    if e.op == "attend":
        q, k, v = present[:3]
        rows = math.prod(q.shape(sizes)[:-1]) * size_of(k.dims[-3], sizes)
        return 2.0 * rows * (size_of(q.dims[-1], sizes) + size_of(v.dims[-1], sizes))
    if e.op == "conv":
        return 2.0 * e.types[0].numel(sizes) * math.prod(present[1].shape(sizes)[1:])
    if e.op in ("grouped_linear", "routed_linear"):
        weight = present[2]
        return 2.0 * e.types[0].numel(sizes) * present[0].numel(sizes) / max(1, _rows(e, present[0], weight, sizes))
    dims: dict[str, Dim] = {d.name: d for t in (*present, *e.types) for d in t.dims}
    return 2.0 * math.prod(size_of(d, sizes) for d in dims.values())


def _rows(e: Eqn, x: TensorType, weight: TensorType, sizes: Mapping[str, int]) -> int:
    """How many rows a grouped product has."""
    n_in = (len(x.dims) - len(e.types[0].dims) + len(weight.dims) - 1) // 2
    return math.prod(x.shape(sizes)[: len(x.dims) - n_in])


def n_params(program: Program, trainable: bool = False) -> int:
    return sum(p.type.numel({}) for p in program.params.values() if p.trainable or not trainable)
