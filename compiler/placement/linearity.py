"""In which of its names a pointwise formula is linear: where a partial sum may pass through it."""

from __future__ import annotations

from typing import Literal

from specc.spec.expr import Expr

Degree = Literal["zero", "constant", "linear", "other"]


def is_linear(e: Expr, names: set[str]) -> bool:
    """Whether f(sum of x) = sum of f(x) where x are the values of these names together."""
    return _degree(e, names) == "linear"


def _degree(e: Expr, names: set[str]) -> Degree:
    if e.op == "num":
        return "constant" if e.value else "zero"
    if e.op == "name":
        return "linear" if e.value in names else "constant"
    parts = [_degree(a, names) for a in e.args]
    if all(p in ("constant", "zero") for p in parts):
        return "constant"
    if e.op in ("+", "-"):
        return _alike(parts)
    if e.op == "*":
        return "linear" if sorted(parts) in (["constant", "linear"], ["linear", "zero"]) else "other"
    if e.op == "/":
        return "linear" if parts == ["linear", "constant"] else "other"
    if e.op == "neg" or (e.op == "call" and e.value == "float"):
        return parts[0]
    if e.op == "call" and e.value == "where":
        return _alike(parts[1:]) if parts[0] == "constant" else "other"
    return "other"


def _alike(parts: list[Degree]) -> Degree:
    return "linear" if all(p in ("linear", "zero") for p in parts) else "other"
