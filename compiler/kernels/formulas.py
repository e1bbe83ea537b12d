"""The pointwise ATen ops that kernels have, as Triton expressions of their operands; all floats are fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

aten = torch.ops.aten

# Around 0 by its series: the difference of numbers near 1 has few digits left there. So has 1 + x of a logarithm.
SERIES = "{x} * (1.0 + {y} * (-1/3 + {y} * (2/15 + {y} * (-17/315 + {y} * (62/2835 - {y} * (1382/155925))))))"
SMALL = SERIES.format(x="{0}", y="({0} * {0})")
TANH = f"tl.where(tl.abs({{0}}) < 0.3, {SMALL}, 2.0 * tl.sigmoid(2.0 * {{0}}) - 1.0)"
MORE = "((1.0 + {0}) - 1.0)"
LOG1P = (
    f"tl.where({MORE} == {{0}}, tl.log(1.0 + {{0}}), tl.where({MORE} == 0.0, {{0}},"
    f" tl.log(1.0 + {{0}}) * ({{0}} / {MORE})))"
)
FORMULAS: Mapping[Any, str] = {
    aten.add.Tensor: "{0} + {1}", aten.add.Scalar: "{0} + {1}", aten.sub.Tensor: "{0} - {1}",
    aten.sub.Scalar: "{0} - {1}", aten.rsub.Scalar: "{1} - {0}", aten.mul.Tensor: "{0} * {1}",
    aten.mul.Scalar: "{0} * {1}", aten.div.Tensor: "{0} / {1}", aten.div.Scalar: "{0} / {1}", aten.neg.default: "-{0}",
    aten.reciprocal.default: "1.0 / {0}", aten.abs.default: "tl.abs({0})", aten.exp.default: "tl.exp({0})",
    aten.log.default: "tl.log({0})", aten.sqrt.default: "tl.sqrt({0})", aten.rsqrt.default: "tl.rsqrt({0})",
    aten.sin.default: "tl.sin({0})", aten.cos.default: "tl.cos({0})", aten.erf.default: "tl.erf({0})",
    aten.sigmoid.default: "tl.sigmoid({0})", aten.tanh.default: TANH,
    aten.relu.default: "tl.maximum({0}, 0.0)", aten.log1p.default: LOG1P,
    aten.maximum.default: "tl.maximum({0}, {1})", aten.minimum.default: "tl.minimum({0}, {1})",
    aten.where.self: "tl.where({0}, {1}, {2})",
    aten.lt.Scalar: "{0} < {1}", aten.lt.Tensor: "{0} < {1}", aten.le.Scalar: "{0} <= {1}",
    aten.le.Tensor: "{0} <= {1}", aten.gt.Scalar: "{0} > {1}", aten.gt.Tensor: "{0} > {1}",
    aten.ge.Scalar: "{0} >= {1}", aten.ge.Tensor: "{0} >= {1}", aten.eq.Scalar: "{0} == {1}",
    aten.eq.Tensor: "{0} == {1}", aten.ne.Scalar: "{0} != {1}", aten.ne.Tensor: "{0} != {1}",
    aten.bitwise_and.Tensor: "{0} & {1}", aten.bitwise_or.Tensor: "{0} | {1}", aten.bitwise_xor.Tensor: "{0} ^ {1}",
    aten.logical_and.default: "{0} & {1}", aten.logical_or.default: "{0} | {1}",
}  # fmt: skip
POWERS: Mapping[float, str] = {
    -2.0: "1.0 / ({0} * {0})", -1.0: "1.0 / {0}", -0.5: "tl.rsqrt({0})", 0.5: "tl.sqrt({0})", 1.0: "{0}",
    1.5: "{0} * tl.sqrt({0})", 2.0: "{0} * {0}", 3.0: "{0} * {0} * {0}", 4.0: "({0} * {0}) * ({0} * {0})",
}  # fmt: skip
TYPES: Mapping[torch.dtype, str] = {
    torch.float32: "tl.float32", torch.bfloat16: "tl.bfloat16", torch.int64: "tl.int64", torch.int32: "tl.int32",
    torch.bool: "tl.int1",
}  # fmt: skip
VIEWS = frozenset({
    aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.expand.default, aten.permute.default, aten.transpose.int, aten.clone.default, aten.alias.default,
    aten.detach.default, aten.reshape.default,
})  # fmt: skip
# Constant tensors; the place of the value among the arguments, or the value.
FILLS: Mapping[Any, tuple[int | None, float]] = {
    aten.full.default: (1, 0.0), aten.full_like.default: (1, 0.0), aten.scalar_tensor.default: (0, 0.0),
    aten.zeros_like.default: (None, 0.0), aten.zeros.default: (None, 0.0), aten.new_zeros.default: (None, 0.0),
    aten.ones_like.default: (None, 1.0),
}  # fmt: skip
CASTS = frozenset({aten._to_copy.default, torch.ops.prims.convert_element_type.default})
COSTLY = frozenset({aten.sin.default, aten.cos.default})
SUMS = frozenset({aten.sum.dim_IntList, aten.sum.default})


def power(base: float) -> Callable[[str], str]:
    """base ** x in fp64: it makes the few frequencies of a row, whose errors positions multiply."""
    return lambda x: f"tl.exp2({x}.to(tl.float64) * {math.log2(base)!r}).to(tl.float32)"


def literal(value: float | int | bool) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def cast(expression: str, src: torch.dtype, dst: torch.dtype) -> str:
    """A value as another type; a narrow float is rounded as it would be in memory, and goes on as fp32."""
    if dst == torch.bool:
        return f"{expression} != 0"
    if not dst.is_floating_point:
        return f"{expression}.to({TYPES[dst]})"
    if dst == torch.float32:
        return expression if src.is_floating_point else f"{expression}.to(tl.float32)"
    return f"{expression}.to({TYPES[dst]}).to(tl.float32)"
