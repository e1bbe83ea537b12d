"""Mask predicates: who sees whom, over attributes of the query token `q` and the key token `k`.

One predicate, several back ends; this file holds the language and its library of names. `q.index` is the place in
the sequence; any other attribute is an integer input of the model."""

from __future__ import annotations

from collections.abc import Mapping

from specc.spec.errors import did_you_mean
from specc.spec.expr import Expr, ExprError, parse

LIBRARY = {
    "full": "1 == 1",
    "causal": "k.index <= q.index",
    "document": "q.doc == k.doc",
    "prefix": "k.part == 0 or k.index <= q.index",
    "padding": "k.doc >= 0",
    "window(n)": "q.index - k.index < n and k.index - q.index < n",
    "chunk(n)": "q.index // n == k.index // n",
}
OBJECTIVES = {
    "causal_lm": "causal & document",
    "masked_lm": "document",
    "blank_infilling": "prefix & document",
    "span_corruption": "causal & document",
}
CAUSAL = parse(LIBRARY["causal"])
MAX_DEPTH, MAX_PARTS = 16, 400
ALLOWED = {
    "num",
    "attr",
    "+",
    "-",
    "*",
    "//",
    "%",
    "neg",
    "and",
    "or",
    "not",
    "<",
    "<=",
    ">",
    ">=",
    "==",
    "!=",
}


class MaskError(Exception):
    """The predicate cannot be read."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def expand(predicate: str, masks: Mapping[str, str]) -> Expr:
    """The predicate with every name replaced by its definition."""
    return _expand(_read(predicate), {**LIBRARY, **masks}, 0, [0])


def implies_causal(e: Expr) -> bool:
    """Whether the predicate lets no query see a later key, as far as its form shows."""
    return e == CAUSAL or (e.op == "and" and any(map(implies_causal, e.args)))


def _read(text: str) -> Expr:
    try:
        return parse(text)
    except ExprError as e:
        raise MaskError(str(e)) from None


def _expand(e: Expr, masks: Mapping[str, str], depth: int, count: list[int]) -> Expr:
    """`depth` counts the names that led here; `count` holds how many parts were made so far."""
    count[0] += 1
    if count[0] > MAX_PARTS:
        raise MaskError(f"the mask has more than {MAX_PARTS} parts")
    if e.op in ("name", "call"):
        if depth > MAX_DEPTH:
            raise MaskError(f"the mask '{e.value}' is defined by itself")
        return _expand(_definition(e, masks), masks, depth + 1, count)
    if e.op not in ALLOWED:
        raise MaskError(f"'{e.op}' has no place in a mask")
    return Expr(e.op, e.value, tuple(_expand(a, masks, depth, count) for a in e.args))


def _definition(e: Expr, masks: Mapping[str, str]) -> Expr:
    """The body of a named mask, its parameters replaced."""
    for head, body in masks.items():
        pattern = _read(head)
        if pattern.value != e.value or pattern.op != e.op:
            continue
        names = [str(p.value) for p in pattern.args]
        if len(names) != len(e.args):
            raise MaskError(f"the mask '{head}' takes {len(names)} numbers, got {len(e.args)}")
        return _put(_read(body), dict(zip(names, e.args, strict=True)))
    raise MaskError(f"no mask is called '{e.value}'", did_you_mean(str(e.value), masks))


def _put(e: Expr, given: Mapping[str, Expr]) -> Expr:
    if e.op == "name" and e.value in given:
        return given[str(e.value)]
    return Expr(e.op, e.value, tuple(_put(a, given) for a in e.args))
