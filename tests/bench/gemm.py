"""The machine's limit: the time that the step's products with weights alone take, forward and both backward ones.

Of the two libraries that torch has for fp32 products, the limit is the faster one's."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from specc.runtime.products import available, mm
from tests.bench.setting import Setting


def make(setting: Setting) -> Callable[[], float]:
    """A function that runs every product's shape once and returns the seconds that a whole step of them takes."""
    dtype = torch.bfloat16 if setting.dtype == "bf16" else torch.float32
    rows = setting.tokens
    shapes = [
        (torch.randn(rows, i, dtype=dtype), torch.randn(o, i, dtype=dtype), uses) for i, o, uses in setting.linears
    ]

    def step() -> float:
        return sum(uses * _three_products(x, w) for x, w, uses in shapes)

    return step


def flops(setting: Setting) -> float:
    """FLOPs of the products with weights in one step: two for each multiply-add, three products each."""
    return sum(6.0 * setting.tokens * i * o * uses for i, o, uses in setting.linears)


def _three_products(x: torch.Tensor, w: torch.Tensor) -> float:
    """Seconds for y = x w', dx = dy w, dw = dy' x, each by the library that is faster at it."""
    dy = x @ w.t()
    pairs = ((x, w.t()), (dy, w), (dy.t(), x))
    libraries: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = [torch.mm]
    if x.dtype == torch.float32 and available():
        libraries.append(mm)
    return sum(min(_seconds(product, a, b) for product in libraries) for a, b in pairs)


def _seconds(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    product(a, b)
    return time.perf_counter() - start
