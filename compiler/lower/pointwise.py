"""Implementations: formulas, reductions and functions of positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.lower.local import Impl, Local, align, wide
from specc.compiler.ops.pointwise import FLOATING
from specc.spec.expr import Expr, _apply

Operand = Tensor | int | float | bool
_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "//": lambda a, b: a // b, "%": lambda a, b: a % b, "**": lambda a, b: a**b,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "abs": torch.abs, "sin": torch.sin,
    "cos": torch.cos, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu, "softplus": F.softplus, "square": torch.square, "detach": torch.detach, "float": lambda x: x,
    "min": lambda a, b: _chosen(lambda x, y: x < y, a, b), "max": lambda a, b: _chosen(lambda x, y: x > y, a, b),
    "where": torch.where, "clamp": lambda x, low, high: torch.where(x < low, low, torch.where(x > high, high, x)),
}  # fmt: skip


def _chosen(better: Callable[[Any, Any], Any], a: Any, b: Any) -> Tensor:
    """Minimum or maximum by selection, whose gradient (unlike torch.minimum's) mutates nothing; NaN goes through. One
    of the two may be a number: made a tensor, it would be a constant of the graph."""
    return torch.where(better(a, b) | (a != a), a, b)


def formula(e: Expr, values: Mapping[str, Operand], dtype: torch.dtype | None = None) -> Operand:
    """Evaluate an expression over aligned tensors; `float(x)` gives `dtype`, as roots of integers do."""
    if e.op == "num":
        assert not isinstance(e.value, str)
        return e.value
    if e.op in ("name", "attr"):
        return values[str(e.value)]
    args = [formula(a, values, dtype) for a in e.args]
    if not any(isinstance(a, Tensor) for a in args):
        return _apply(e, args)  # type: ignore[arg-type]
    if e.op == "/" or (e.op == "call" and e.value in FLOATING):
        args = [_floating(a, dtype) if isinstance(a, Tensor) else a for a in args]
    if e.op == "call":
        return _FUNCTIONS[str(e.value)](*args)
    if e.op == "neg":
        assert isinstance(args[0], Tensor)
        return -args[0]
    if e.op == "not":
        assert isinstance(args[0], Tensor)
        return ~args[0]
    result: Tensor = _BINARY[e.op](*args)
    return result


def _floating(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Integers and conditions as numbers that formulas take roots of."""
    return x if x.is_floating_point() else x.to(dtype or torch.get_default_dtype())


def expr(e: Local, *values: Tensor) -> Tensor:
    tree: Expr = e.attr("formula")
    aligned = [align(v, e.dims(i), e.out.dims) for i, v in enumerate(values)]
    result = formula(tree, dict(zip(tree.names(), aligned, strict=True)), e.attr("dtype"))
    assert isinstance(result, Tensor)
    return result if result.shape == e.shape() else result.expand(e.shape())


def _axes(e: Local) -> list[int]:
    over = e.attr("over_dims")
    return [i for i, d in enumerate(e.dims(0)) if d not in e.out.dims] if over is None else over


def mean(e: Local, x: Tensor) -> Tensor:
    axes, x = _axes(e), _floating(x, e.attr("dtype"))
    return wide(x).mean(axes).to(x.dtype) if axes else x


def total(e: Local, x: Tensor) -> Tensor:
    axes, x = _axes(e), _floating(x, e.attr("dtype"))
    return wide(x).sum(axes).to(x.dtype) if axes else x


def largest(e: Local, x: Tensor) -> Tensor:
    axes = _axes(e)
    return x.amax(axes) if axes else x


def smallest(e: Local, x: Tensor) -> Tensor:
    axes = _axes(e)
    return x.amin(axes) if axes else x


def argmax(e: Local, x: Tensor) -> Tensor:
    return (x.long() if x.dtype == torch.bool else x).argmax(e.axis(0, e.attr("over")))


def one_hot(e: Local, index: Tensor) -> Tensor:
    n = e.size(e.attr("of"))
    return (index[..., None] == torch.arange(n, device=index.device)).to(e.attr("dtype") or torch.get_default_dtype())


def sinusoidal(e: Local, x: Tensor) -> Tensor:
    """[...] -> [... D]: sines then cosines (or the other way) of x * period^(-i / (D/2 - shift)).

    Angles are fp32 or wider; with `angles: fp32` they are fp32 in fp64 models too, as in published diffusion models."""
    half, is_fp64 = e.size(e.out.dims[-1]) // 2, torch.float64 in (x.dtype, e.attr("dtype"))
    exact = torch.float64 if is_fp64 and e.attr("angles") is None else torch.float32
    i = torch.arange(half, device=x.device, dtype=exact)
    angle = x[..., None].to(exact) * torch.exp(-math.log(e.attr("period")) * i / (half - e.attr("shift")))
    parts = [angle.cos(), angle.sin()] if e.attr("cos_first") else [angle.sin(), angle.cos()]
    return torch.cat(parts, -1).to(x.dtype if x.is_floating_point() else e.attr("dtype") or torch.get_default_dtype())


IMPLS: dict[str, Impl] = {
    "expr": expr, "mean": mean, "sum": total, "max": largest, "min": smallest, "argmax": argmax, "one_hot": one_hot,
    "sinusoidal": sinusoidal,
}  # fmt: skip
