"""Inputs of our models from those of a reference case, by formulas: `next(labels)`, `attention_mask - 1`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from specc.compiler.lower.pointwise import Operand, formula
from specc.compiler.ops.loss import IGNORE
from specc.compiler.types import DType
from specc.spec.expr import Expr, parse


def shifted(x: Tensor, by: int, fill: int) -> Tensor:
    """The entries along the last dim moved by `by` places."""
    y = torch.full_like(x, fill)
    if by < 0:
        y[..., :by] = x[..., -by:]
    else:
        y[..., by:] = x[..., :-by]
    return y


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "next": lambda x: shifted(x, -1, IGNORE),  # labels of a model that shifts them itself
    "previous": lambda x: shifted(x, 1, 0),  # what a decoder that starts with token 0 sees
    "index": lambda x: torch.arange(x.shape[-1]).expand(x.shape),
    "zeros": lambda x: torch.zeros_like(x),
}


def value(text: str | list[str], case: Mapping[str, Operand], kind: DType, compute: torch.dtype) -> Tensor:
    """The tensor of a formula, or of the first of several whose names the case has."""
    options = [parse(t) for t in ([text] if isinstance(text, str) else text)]
    usable = [e for e in options if all(n in case for n in e.names())]
    if not usable:
        raise ValueError(f"the case has not all of {', '.join(options[-1].names())}")
    result = applied(usable[0], case)
    assert isinstance(result, Tensor)
    return result.to({"float": compute, "int": torch.int64, "bool": torch.bool}[kind])


def applied(e: Expr, case: Mapping[str, Operand]) -> Operand:
    """A formula with the functions above inside it."""
    if e.op == "call" and e.value in FUNCTIONS:
        inner = applied(e.args[0], case)
        assert isinstance(inner, Tensor)
        return FUNCTIONS[str(e.value)](inner)
    if not e.args:
        return formula(e, case)
    names = [f"arg{i}" for i in range(len(e.args))]
    values = {n: applied(a, case) for n, a in zip(names, e.args, strict=True)}
    return formula(Expr(e.op, e.value, tuple(Expr("name", n) for n in names)), values)
