"""Rows: formulas over named dims, reductions and functions of positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from specc.compiler.ops.row import Applied, Arg, Op, OpError
from specc.compiler.types import Dim, DType, TensorType, places
from specc.spec.expr import Expr, ExprError, evaluate

COMPARISONS = {"<", "<=", ">", ">=", "==", "!=", "and", "or", "not"}
FUNCTIONS = {
    "exp": 1, "log": 1, "sqrt": 1, "rsqrt": 1, "abs": 1, "sin": 1, "cos": 1, "sigmoid": 1, "tanh": 1, "relu": 1,
    "gelu": 1, "gelu_tanh": 1, "quick_gelu": 1, "silu": 1, "softplus": 1, "square": 1, "float": 1, "detach": 1,
    "min": 2, "max": 2, "where": 3, "clamp": 3,
}  # fmt: skip
MEANINGS = {
    "rsqrt": "1 / sqrt(x)", "gelu": "by the error function", "gelu_tanh": "gelu by its approximation with tanh",
    "quick_gelu": "x * sigmoid(1.702 * x)", "silu": "x * sigmoid(x)", "softplus": "log(1 + exp(x))",
    "square": "x * x", "float": "an integer or a condition as a number", "detach": "x, with no gradient",
    "min": "the smaller of two; of a dim's entries: the op `min`", "max": "the larger of two; see the op `max`",
    "where": "where(condition, a, b): a where it holds, else b", "clamp": "clamp(x, low, high)",
}  # fmt: skip
OPERATORS = "+ - * / // % **, comparisons, and or not"
FLOATING = {
    "exp", "log", "sqrt", "rsqrt", "sin", "cos", "sigmoid", "tanh", "gelu", "gelu_tanh", "quick_gelu", "silu",
    "softplus", "float",
}  # fmt: skip


def broadcast(types: list[TensorType]) -> tuple[Dim, ...]:
    """The dims of all operands by name, in the order of the operand that has most."""
    wide = max(types, key=lambda t: len(t.dims))
    out = list(wide.dims)
    for t in types:
        for d, twin in zip(t.dims, places(t.dims, tuple(out)), strict=True):
            if twin is None:
                raise OpError("S201", f"{t.shown()} has '{d.shown()}', which {wide.shown()} has not")
            if d.is_plain and not out[twin].is_plain:
                out[twin] = d
    return tuple(out)


def check_formula(e: Expr) -> None:
    """Functions exist and have the right number of arguments."""
    for node in e.walk():
        if node.op == "attr":
            raise OpError("S104", f"'{node.value}' only makes sense in a mask")
        if node.op in ("/", "//", "%") and _is_zero(node.args[1]):
            raise OpError("S104", f"'{node}' divides by zero")
        if node.op != "call":
            continue
        if node.value not in FUNCTIONS:
            raise OpError("S104", f"unknown function '{node.value}'", hint=f"known: {', '.join(FUNCTIONS)}")
        if FUNCTIONS[str(node.value)] != len(node.args):
            raise OpError("S104", f"'{node.value}' takes {FUNCTIONS[str(node.value)]} arguments, got {len(node.args)}")


def _is_zero(e: Expr) -> bool:
    """Whether an expression is the number 0, whatever the values are."""
    if e.names() or any(n.op == "call" for n in e.walk()):
        return False
    try:
        return evaluate(e, {}) == 0
    except ExprError:
        return False


def _dtype(e: Expr, named: Mapping[str, DType]) -> DType:
    """The type of a formula over values of these types; what would fail on tensors fails here."""
    if e.op == "num":
        return "bool" if isinstance(e.value, bool) else "float" if isinstance(e.value, float) else "int"
    if e.op == "name":
        return named[str(e.value)]
    if not e.names() and not any(n.op == "call" for n in e.walk()):
        try:
            return _dtype(Expr("num", evaluate(e, {})), named)
        except ExprError as error:
            raise OpError("S104", str(error)) from None
    args = [_dtype(a, named) for a in e.args]
    if e.op in COMPARISONS:
        if e.op in ("and", "or", "not") and set(args) != {"bool"}:
            raise OpError("S104", f"'{e}' joins numbers, not conditions", hint="compare them: x > 0")
        return "bool"
    if e.op == "/" or (e.op == "call" and e.value in FLOATING):
        return "float"
    if e.op in ("neg", "-") and "bool" in args and (e.op == "neg" or args == ["bool", "bool"]):
        raise OpError("S104", f"'{e}' takes a condition from another", hint="'float(...)' makes it 0 or 1")
    if e.op == "**" and args == ["int", "int"] and e.args[0].names() and _is_negative(e.args[1]):
        raise OpError("S104", f"'{e}' is an integer to a negative power", hint="'float(...)' of the integer")
    kinds = args[1:] if e.op == "call" and e.value == "where" else args
    return next(kind for kind in ("float", "int", "bool") if kind in kinds)


def _is_negative(e: Expr) -> bool:
    return e.op == "neg" or (e.op == "num" and not isinstance(e.value, str) and e.value < 0)


def _expr(a: Applied) -> tuple[TensorType, ...]:
    formula: Expr = a.args["formula"]
    check_formula(formula)
    types = [t for t in a.ins if t is not None]
    if not types:
        raise OpError("S104", "a formula needs at least one value")
    named = dict(zip(formula.names(), (t.dtype for t in types), strict=True))
    return (TensorType(broadcast(types), _dtype(formula, named)),)


def _reduce(a: Applied) -> tuple[TensorType, ...]:
    x, over = a.type(0), a.args["over"]
    names = {d.name for d in over} if over else {d.name for d in x.dims}
    strange = names - {d.name for d in x.dims}
    if over and len(names) < len(over):
        raise OpError("S103", "'over' names a dim twice")
    if strange:
        raise OpError("S202", f"{x} has no dim '{sorted(strange)[0]}'")
    return (TensorType(tuple(d for d in x.dims if d.name not in names)),)


def _argmax(a: Applied) -> tuple[TensorType, ...]:
    return (TensorType(tuple(d for d in a.type(0).dims if d != a.args["over"]), "int"),)


def _sinusoidal(a: Applied) -> tuple[TensorType, ...]:
    out: Dim = a.args["out"]
    if out.size is not None and out.size % 2:
        raise OpError("S203", f"sines and cosines are as many: {out.shown()} is odd")
    if out.size is not None and a.args["shift"] >= out.size // 2:
        raise OpError("S203", f"half of {out.shown()} is not more than the shift {a.args['shift']:g}")
    return (TensorType((*a.type(0).dims, out)),)


def _one_hot(a: Applied) -> tuple[TensorType, ...]:
    return (TensorType((*a.type(0).dims, a.args["of"])),)


def _reduction(name: str, doc: str, takes: Literal["any", "float"] = "any") -> Op:
    args = {"over": Arg("dims", None, "dims that go; default: all")}
    return Op(name, "-> ", doc, args=args, takes=(takes,), infer=_reduce, mixes="summed")


ROWS = (
    Op("expr", "-> ", "A pointwise formula over named values: `x + gate * _`; dims are matched by name.",
       inputs=("*values",), args={"formula": Arg("expr")}, takes=("any",) * 16, infer=_expr),
    _reduction("mean", "Mean over dims, in fp32."),
    _reduction("sum", "Sum over dims, in fp32."),
    _reduction("max", "Largest entry over dims; entries that are equal share its gradient.", "float"),
    _reduction("min", "Smallest entry over dims; entries that are equal share its gradient.", "float"),
    Op("argmax", "-> ", "Index of the (first) largest entry along a dim.", takes=("any",),
       args={"over": Arg("dim")}, gives=("int",), infer=_argmax, flops="none", mixes="summed"),
    Op("one_hot", "-> ", "1 at the index, 0 elsewhere, along a new last dim.", inputs=("index",), takes=("int",),
       args={"of": Arg("dim")}, infer=_one_hot, flops="none"),
    Op("sinusoidal", "-> ", "Sines and cosines of numbers at geometric frequencies (arXiv:1706.03762 sec. 3.5).",
       takes=("any",), args={"out": Arg("dim"), "period": Arg("float", 1e4, within="(0, inf)"),
                             "cos_first": Arg("bool", False), "shift": Arg("float", 0.0, "frequencies i/(half-shift)"),
                             "angles": Arg("choice", None, "`fp32`: in fp32 even where the model computes in fp64",
                                           ("fp32",))},
       infer=_sinusoidal),
)  # fmt: skip
