"""How fast this machine is: products and memory, measured in a fraction of a second, and what a step takes by that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from specc.compiler.work import Work
from specc.runtime.device import CPU, forget_peak, settle
from specc.runtime.products import product

SIDE = 1024  # of the square matrices; on GPUs four times that, and sixteen times the elements
ELEMENTS = 1 << 22  # of the tensor that is read, and of the new one that is written
SMALL = 200  # runs of an op that takes microseconds
FUSED = 0.4  # share of the bytes that are still moved, and of the ops that are left, when a graph is compiled


@dataclass(frozen=True)
class Rates:
    """FLOP/s of products in one dtype, bytes/s of pointwise ops, seconds before any op, with this moment's threads."""

    flops: float
    bytes: float
    op: float = 0.0

    def seconds(self, work: Work, compiled: bool = False) -> float:
        share = FUSED if compiled else 1.0
        return work.flops / self.flops + share * (work.bytes / self.bytes + work.nodes * self.op)


@cache
def measured(compute: torch.dtype, device: torch.device = CPU) -> Rates:
    """The best of a few runs each."""
    side, elements = (SIDE, ELEMENTS) if device == CPU else (4 * SIDE, 16 * ELEMENTS)
    x, y = torch.randn(side, side, device=device).to(compute), torch.randn(elements, device=device)
    by = product if device == CPU else torch.mm
    flops = 2.0 * side**3 / best(lambda: by(x, x), device)
    one, out = torch.ones(1, device=device), torch.empty_like(y)  # fresh memory would be measured too
    touched = 8.0 * elements / best(lambda: torch.add(y, 1.0, out=out), device)
    found = Rates(flops, touched, best(lambda: one + 1.0, device, SMALL))
    forget_peak(device)
    return found


def best(run: Callable[[], object], device: torch.device = CPU, times: int = 5) -> float:
    """The least seconds of several runs after a first one."""
    return min(clocked(run, device, times))


def clocked(
    run: Callable[[], object], device: torch.device, times: int, before: Callable[[], object] = lambda: None
) -> list[float]:  # fmt: skip
    """Seconds of several runs after a first one; what comes before each does not count."""
    run()
    seconds: list[float] = []
    for _ in range(times):
        before()
        settle(device)
        began = time.perf_counter()
        run()
        settle(device)
        seconds.append(time.perf_counter() - began)
    return seconds
