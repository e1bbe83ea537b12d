"""The one expression language of specs: dim arithmetic, pointwise formulas, mask predicates and guards.

Python's own grammar is parsed, then only an allow-list of nodes is taken over into `Expr`; nothing is ever
evaluated by Python. `&` and `|` are other words for `and` and `or`, so they bind looser than comparisons, as in
masks on paper. What a name means is the reader's affair."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

MAX_LENGTH = 400
MAX_NODES = 200
Number = int | float | bool

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
}  # fmt: skip
_WORDS = str.maketrans({"&": " and ", "|": " or "})
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], str] = {ast.USub: "neg", ast.Not: "not", ast.Invert: "not"}


class ExprError(ValueError):
    """The text is not an expression that specs allow."""


@dataclass(frozen=True)
class Expr:
    """A node: `num` holds its value, `name` and `attr` their identifiers, `call` its function's name."""

    op: str
    value: Number | str = 0
    args: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        return _text(self)

    def walk(self) -> Iterator[Expr]:
        yield self
        for arg in self.args:
            yield from arg.walk()

    def names(self) -> list[str]:
        """The plain names it uses, in order, each once."""
        return list(dict.fromkeys(str(e.value) for e in self.walk() if e.op == "name"))

    def to_json(self) -> list[object]:
        return [self.op, self.value, *(a.to_json() for a in self.args)]


def from_json(data: object) -> Expr:
    assert isinstance(data, list | tuple)
    op, value, *args = data
    return Expr(str(op), value, tuple(from_json(a) for a in args))


def parse(text: str | int | float) -> Expr:
    """Parse an expression; raises ExprError with a reason that a person can use."""
    if isinstance(text, bool | int | float):
        return Expr("num", text)
    if len(text) > MAX_LENGTH:
        raise ExprError(f"an expression may have {MAX_LENGTH} characters, this has {len(text)}")
    if not text.isascii():  # Python folds look-alike letters into one name
        raise ExprError(f"'{text}' has letters other than ASCII")
    try:
        tree = ast.parse(text.translate(_WORDS).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ExprError(f"'{text}' is not an expression") from None
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ExprError(f"an expression may have {MAX_NODES} parts")
    return _convert(tree)


def _convert(node: ast.expr) -> Expr:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return _number(value)
        case ast.Name(id=name) if name.isascii() and not name.startswith("__"):
            return Expr("name", name)
        case ast.Attribute(value=ast.Name(id="q" | "k" as side), attr=attr) if attr.isascii():
            return Expr("attr", f"{side}.{attr}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return Expr(_BINARY[type(op)], args=(_convert(left), _convert(right)))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return Expr(_UNARY[type(op)], args=(_convert(operand),))
        case ast.BoolOp(op=bool_op, values=values):
            return _fold("and" if isinstance(bool_op, ast.And) else "or", [_convert(v) for v in values])
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(o) in _COMPARE for o in ops):
            return _comparison(left, ops, rest)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return Expr("call", name, tuple(_convert(a) for a in args))
        case _:
            raise ExprError(f"'{ast.unparse(node)}' is not allowed in an expression")


def _number(value: Number) -> Expr:
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise ExprError("a number may have 63 bits")
    return Expr("num", value)


def _comparison(left: ast.expr, ops: list[ast.cmpop], rest: list[ast.expr]) -> Expr:
    terms = [_convert(e) for e in (left, *rest)]
    pairs = [Expr(_COMPARE[type(o)], args=(terms[i], terms[i + 1])) for i, o in enumerate(ops)]
    return _fold("and", pairs)


def _fold(op: str, parts: list[Expr]) -> Expr:
    whole = parts[0]
    for part in parts[1:]:
        whole = Expr(op, args=(whole, part))
    return whole


_INFIX_RANK = {"or": 1, "and": 2, "==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4,
               "+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "**": 8}  # fmt: skip


def _text(e: Expr, rank: int = 0) -> str:
    if e.op in ("num", "name", "attr"):
        return str(e.value)
    if e.op == "call":
        return f"{e.value}({', '.join(_text(a) for a in e.args)})"
    if e.op == "neg":
        return f"-{_text(e.args[0], 7)}"
    if e.op == "not":
        return f"not {_text(e.args[0], 3)}"
    own = _INFIX_RANK[e.op]
    body = f"{_text(e.args[0], own)} {e.op} {_text(e.args[1], own + 1)}"
    return f"({body})" if own < rank else body


_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "min": min, "max": max, "sqrt": math.sqrt, "ceil": math.ceil, "floor": math.floor,
}  # fmt: skip


def evaluate(e: Expr, names: Mapping[str, Number]) -> Number:
    """The number that a static expression stands for; raises ExprError on an unknown name or bad arithmetic."""
    match e.op:
        case "num":
            assert not isinstance(e.value, str)
            return e.value
        case "name":
            if e.value not in names:
                raise ExprError(f"unknown name '{e.value}'")
            return names[str(e.value)]
        case "and":
            return evaluate(e.args[0], names) and evaluate(e.args[1], names)
        case "or":
            return evaluate(e.args[0], names) or evaluate(e.args[1], names)
        case "attr":
            raise ExprError(f"'{e.value}' only makes sense in a mask")
    try:
        number = _apply(e, [evaluate(a, names) for a in e.args])
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ExprError(f"'{e}': {error}") from None
    if isinstance(number, complex) or not math.isfinite(number):
        raise ExprError(f"'{e}' is not a finite number")
    return number


def _apply(e: Expr, a: list[Number]) -> Number:
    if e.op == "call":
        if e.value not in _FUNCTIONS:
            raise ExprError(f"unknown function '{e.value}'; known: {', '.join(_FUNCTIONS)}")
        return _FUNCTIONS[str(e.value)](*a)
    if e.op == "**" and (abs(a[1]) > 64 or abs(a[0]) > 1 << 32):
        raise ExprError(f"'{e}' is too large a power")
    table: dict[str, Callable[..., Number]] = {
        "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y, "/": lambda x, y: x / y,
        "//": lambda x, y: x // y, "%": lambda x, y: x % y, "**": lambda x, y: x**y,
        "neg": lambda x: -x, "not": lambda x: not x,
        "<": lambda x, y: x < y, "<=": lambda x, y: x <= y, ">": lambda x, y: x > y,
        ">=": lambda x, y: x >= y, "==": lambda x, y: x == y, "!=": lambda x, y: x != y,
    }  # fmt: skip
    return table[e.op](*a)
