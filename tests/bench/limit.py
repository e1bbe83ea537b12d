"""The machine's limit: the time that a step's products take by themselves, each by the library that is faster at it.

The products are those of specc's graphs, forward and backward; every side has them. Attention (of a causal
mask half) and the products of experts count by their FLOPs, at the rate of the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from specc.compiler.cost import eqn_cost
from specc.compiler.graphs import node_type
from specc.compiler.program import Program
from specc.compiler.schedule.actions import graph_calls, one_rank
from specc.runtime.products import available, has_bf16, mm, product
from tests.bench.lowered import lowered, program_of, sizes_of
from tests.bench.models import Setting

aten = torch.ops.aten
Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # sizes and strides of both operands


def make(setting: Setting) -> Callable[[], float]:
    """A function that runs every product once and returns the seconds that a whole step of them takes."""
    dtype = torch.bfloat16 if setting.dtype == "bf16" else torch.float32
    shapes, rest = work(setting)
    drawn = [(_drawn(s[0], s[1], dtype), _drawn(s[2], s[3], dtype), n) for s, n in shapes.items()]
    known = products(shapes)

    def step() -> float:
        seconds = sum(n * _fastest(a, b) for a, b, n in drawn)
        return seconds * (known + rest) / known

    return step


def flops(setting: Setting) -> float:
    """Those of a step."""
    shapes, rest = work(setting)
    return products(shapes) + rest


def products(shapes: Mapping[Shape, int]) -> float:
    return sum(n * 2.0 * a[0] * a[1] * b[1] for (a, _, b, _), n in shapes.items())


def work(setting: Setting) -> tuple[Counter[Shape], float]:
    """How often a step multiplies matrices of each shape, and the FLOPs of attention and of the products of experts."""
    program = program_of(setting.row)
    graphs, calls = lowered(setting, program)
    found: Counter[Shape] = Counter()
    times = graph_calls(one_rank(len(calls), 1, set(range(len(calls)))), calls)
    for (body, part), n in times.items():
        for node in graphs[body].parts()[part].graph.nodes:
            if node.target in (aten.mm.default, aten.addmm.default):
                (_, a, a_strides), (_, b, b_strides) = (node_type(x) for x in node.args[-2:])
                found[(tuple(a), tuple(a_strides), tuple(b), tuple(b_strides))] += n
    return found, others(program, sizes_of(setting.row, program))


def others(program: Program, sizes: Mapping[str, int]) -> float:
    """FLOPs beside those of plain products. Attention has two products forward and five backward, of a causal mask half
    of the scores; experts have one and two."""
    total = 0.0
    for body in (program.bodies[c.body] for c in program.calls):
        types = body.types()
        for e in (e for e in body.eqns if e.op in ("attend", "grouped_linear")):
            passes = 3.0 if e.op == "grouped_linear" else 1.75 if e.attrs.get("causal") else 3.5
            total += passes * eqn_cost(e, [types[i] if i else None for i in e.ins], sizes, 4).flops
    return total


def _drawn(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype).normal_()


def _fastest(a: Tensor, b: Tensor) -> float:
    """Seconds of a product by the library that is faster at it."""
    libraries: list[Callable[[Tensor, Tensor], Tensor]] = [torch.mm]
    if a.dtype == torch.float32 and available():
        libraries.append(mm)
    if a.dtype == torch.bfloat16 and not has_bf16():
        libraries = [product]
    return min(_seconds(library, a, b) for library in libraries)


def _seconds(by: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    start = time.perf_counter()
    by(a, b)
    return time.perf_counter() - start
