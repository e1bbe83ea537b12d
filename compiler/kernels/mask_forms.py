"""A mask predicate in its other forms: a tile of scores in a Triton kernel, and FlexAttention's mask_mod.

The dense form is `mask` in compiler/lower/attention.py; the three are tested to agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from specc.compiler.lower.pointwise import formula
from specc.spec.expr import Expr, evaluate

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
WORDS = {"and": "&", "or": "|"}
# Triton rounds quotients of whole numbers towards zero, the language rounds down.
HELPERS = """\
@triton.jit
def floor_mod(a, b):
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def floor_div(a, b):
    return (a - floor_mod(a, b)) // b
"""


def tile_text(e: Expr, names: Mapping[str, str], in_triton: bool = True) -> str:
    """The predicate as an expression of a kernel; `names` are those of attributes there. With `q.index` and what else
    is of queries as a column, and `k.index` and the keys' as a row, it is a tile. In torch it is the dense mask."""
    if not any(node.op == "attr" for node in e.walk()):
        value = evaluate(e, {})
        return ("(k_index >= 0)" if value else "(k_index < 0)") if isinstance(value, bool) else f"({value})"
    if e.op == "attr":
        return {"q.index": "q_index", "k.index": "k_index", **names}[str(e.value)]
    args = [tile_text(a, names, in_triton) for a in e.args]
    if e.op in ("//", "%") and in_triton:
        return f"floor_{'div' if e.op == '//' else 'mod'}({args[0]}, {args[1]})"
    if e.op in ("neg", "not"):
        return f"({'-' if e.op == 'neg' else '~'}{args[0]})"
    return f"({args[0]} {WORDS.get(e.op, e.op)} {args[1]})"


def mask_mod(e: Expr, attributes: Mapping[str, Tensor]) -> MaskMod:
    """The predicate as FlexAttention takes it; `attributes` are [B S] or [B T] by name (`q.doc`)."""

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        values = {"q.index": q, "k.index": k}
        values |= {name: x[b, q if name.startswith("q.") else k] for name, x in attributes.items()}
        found = formula(e, values)
        return found if isinstance(found, Tensor) else (q >= 0) & bool(found)

    return seen


Span = tuple[str, str]  # the least and the greatest that a number may be, as texts
Claim = tuple[str, str]  # when a condition may hold, and when it may fail, as texts
ALWAYS = "True"


def may_hold(e: Expr, spans: Mapping[str, Span]) -> str:
    """When the predicate may hold somewhere in a tile, as an expression of a kernel over the bounds that attributes
    have in it; `True` where its form does not tell. It is never false of a tile in which some query sees a key."""
    return _claim(e, spans)[0]


def _claim(e: Expr, spans: Mapping[str, Span]) -> Claim:
    if not any(node.op == "attr" for node in e.walk()):
        return (ALWAYS, "False") if evaluate(e, {}) else ("False", ALWAYS)
    if e.op == "not":
        holds, fails = _claim(e.args[0], spans)
        return fails, holds
    if e.op in WORDS:
        (a, not_a), (b, not_b) = (_claim(arg, spans) for arg in e.args)
        return (_both(a, b), _either(not_a, not_b)) if e.op == "and" else (_either(a, b), _both(not_a, not_b))
    left, right = (_span(arg, spans) for arg in e.args)
    return _compared(e.op, left, right) if left and right else (ALWAYS, ALWAYS)


def _compared(op: str, left: Span, right: Span) -> Claim:
    (a, b), (c, d) = left, right
    match op:
        case "<" | "<=":
            return f"({a} {op} {d})", f"({b} {'>=' if op == '<' else '>'} {c})"
        case ">" | ">=":
            return _compared({">": "<", ">=": "<="}[op], right, left)
        case "==":
            return f"(({a} <= {d}) & ({c} <= {b}))", f"(({a} != {d}) | ({b} != {c}))"
    holds, fails = _compared("==", left, right)
    return fails, holds


def _span(e: Expr, spans: Mapping[str, Span]) -> Span | None:
    if e.op == "num":
        return f"({e.value})", f"({e.value})"
    if e.op == "attr":
        return spans[str(e.value)]
    found = [_span(a, spans) for a in e.args]
    a, b = found[0], found[-1]
    if a is None or b is None:
        return None
    match e.op:
        case "neg":
            return f"(-{a[1]})", f"(-{a[0]})"
        case "+":
            return f"({a[0]} + {b[0]})", f"({a[1]} + {b[1]})"
        case "-":
            return f"({a[0]} - {b[1]})", f"({a[1]} - {b[0]})"
    by = e.args[1]
    if by.op != "num" or float(by.value) <= 0:
        return None
    if e.op == "//":
        return f"floor_div({a[0]}, {b[0]})", f"floor_div({a[1]}, {b[0]})"
    return (f"({a[0]} * {b[0]})", f"({a[1]} * {b[0]})") if e.op == "*" else None


def _both(a: str, b: str) -> str:
    if "False" in (a, b):
        return "False"
    return b if a == ALWAYS else a if b == ALWAYS else f"({a} & {b})"


def _either(a: str, b: str) -> str:
    if ALWAYS in (a, b):
        return ALWAYS
    return b if a == "False" else a if b == "False" else f"({a} | {b})"
