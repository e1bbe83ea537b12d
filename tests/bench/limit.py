"""The machine's limit: the time that a step's products take by themselves, each by the library that is faster at it.

The products are those of specc's graphs, forward and backward; every side has them. Attention (of a causal
mask half) and the products of experts count by their FLOPs, at the rate of the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from specc.compiler.graphs import Graphs, node_type
from specc.compiler.program import Call
from specc.compiler.schedule.actions import graph_calls, one_rank
from specc.compiler.work import graph_work
from specc.runtime.products import available, has_bf16, mm, product
from tests.bench.models import Setting
from tests.bench.specc_side import lowered

aten = torch.ops.aten
Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # sizes and strides of both operands


def make(setting: Setting) -> Callable[[], float]:
    """A function that runs every product once and returns the seconds that a whole step of them takes."""
    dtype = torch.bfloat16 if setting.dtype == "bf16" else torch.float32
    graphs, calls = lowered(setting)
    shapes, rest = products(graphs, calls)
    drawn = [(_drawn(s[0], s[1], dtype), _drawn(s[2], s[3], dtype), n) for s, n in shapes.items()]
    known = sum(n * 2.0 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, n in drawn)

    def step() -> float:
        seconds = sum(n * _fastest(a, b) for a, b, n in drawn)
        return seconds * (known + rest) / known

    return step


def flops(setting: Setting) -> float:
    """Those of a step."""
    return sum(n * graph_work(gm).flops for gm, n in uses(*lowered(setting)))


def uses(graphs: dict[str, Graphs], calls: tuple[Call, ...]) -> list[tuple[fx.GraphModule, int]]:
    """The graphs of a step, and how often each runs."""
    times = graph_calls(one_rank(len(calls), 1, set(range(len(calls)))), calls)
    return [(graphs[body].parts()[part], n) for (body, part), n in times.items()]


def products(graphs: dict[str, Graphs], calls: tuple[Call, ...]) -> tuple[Counter[Shape], float]:
    """How often a step multiplies matrices of each shape, and the FLOPs of all else (attention, groups)."""
    found: Counter[Shape] = Counter()
    rest = 0.0
    for gm, n in uses(graphs, calls):
        rest += n * graph_work(gm).flops
        for node in gm.graph.nodes:
            if node.target in (aten.mm.default, aten.addmm.default):
                (_, a, a_strides), (_, b, b_strides) = (node_type(x) for x in node.args[-2:])
                found[(tuple(a), tuple(a_strides), tuple(b), tuple(b_strides))] += n
                rest -= n * 2.0 * a[0] * a[1] * b[1]
    return found, rest


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
