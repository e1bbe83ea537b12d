"""The machine's limit: the time that the step's products with weights alone take, forward and both backward ones."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

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
    """Seconds for y = x w', dx = dy w, dw = dy' x."""
    dy = x @ w.t()
    start = time.perf_counter()
    torch.mm(x, w.t(), out=dy)
    torch.mm(dy, w)
    torch.mm(dy.t(), x)
    return time.perf_counter() - start
