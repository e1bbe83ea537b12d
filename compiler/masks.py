"""Mask predicates: who sees whom, over attributes of the query token `q` and the key token `k`.

One predicate, several back ends; this file holds the language and its library of names. `q.index` is the place in
the sequence; any other attribute is an integer input of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping

from specc.spec.errors import did_you_mean
from specc.spec.expr import Expr, ExprError, Number, evaluate, parse

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
    "images": "causal & document",
    "denoising": "document",
}
CAUSAL = parse(LIBRARY["causal"])
MAX_DEPTH, MAX_PARTS = 16, 400
JOINS = {"and", "or", "not"}
COMPARISONS = {"<", "<=", ">", ">=", "==", "!="}
ALLOWED = {"num", "attr", "+", "-", "*", "//", "%", "neg", *JOINS, *COMPARISONS}
COMPARE = "compare it: q.modality == 1, say"


class MaskError(Exception):
    """The predicate cannot be read."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def expand(predicate: str, masks: Mapping[str, str], numbers: Mapping[str, Number]) -> Expr:
    """The predicate with every name replaced by its definition; `numbers` are those of the model's dims."""
    whole = _Expansion({**LIBRARY, **masks}, numbers).of(_read(predicate), 0)
    if not _is_condition(whole):
        raise MaskError(f"'{predicate}' is a number, not a condition", COMPARE)
    return whole


def _is_condition(e: Expr) -> bool:
    """Whether it says yes or no; else it is a number. Raises MaskError where one stands for the other."""
    parts = [_is_condition(a) for a in e.args]
    if e.op in JOINS and not all(parts):
        number = e.args[parts.index(False)]
        raise MaskError(f"'{e}' joins conditions, and '{number}' is a number", COMPARE)
    if e.op not in JOINS and any(parts):
        raise MaskError(f"'{e}' takes numbers, and '{e.args[parts.index(True)]}' is a condition")
    return e.op in JOINS or e.op in COMPARISONS or isinstance(e.value, bool)


def bound(predicate: str, masks: Mapping[str, str], numbers: Mapping[str, Number]) -> str:
    """The predicate with numbers for the names of these, as far as no mask has the name."""
    known = {str(e.value) for e in map(_read, {**LIBRARY, **masks}) if e.op == "name"}
    given = {name: Expr("num", n) for name, n in numbers.items() if name not in known}
    return str(_put(_read(predicate), given))


def reach(e: Expr, by: tuple[str, str]) -> int | None:
    """How many tokens apart the first of two sides (`q.index`, `k.index`) is behind the other at most, as far as the
    predicate's form shows: one of the conditions that it joins bounds their difference."""
    if e.op == "and":
        found = [n for n in (reach(a, by) for a in e.args) if n is not None]
        return min(found, default=None)
    if e.op not in ("<", "<=") or len(e.args) != 2 or e.args[1].op != "num":
        return None
    less, bound = e.args[0], float(e.args[1].value)
    sides = tuple(a.value for a in less.args) if less.op == "-" else ()
    return max(0, math.ceil(bound) - 1 if e.op == "<" else math.floor(bound)) if sides == by else None


def implies_causal(e: Expr) -> bool:
    """Whether the predicate lets no query see a later key, as far as its form shows."""
    return e == CAUSAL or (e.op == "and" and any(map(implies_causal, e.args)))


def _read(text: str) -> Expr:
    try:
        return parse(text)
    except ExprError as e:
        raise MaskError(str(e)) from None


class _Expansion:
    """Names replaced by their definitions, with a bound on how many parts come of it."""

    def __init__(self, masks: Mapping[str, str], numbers: Mapping[str, Number]) -> None:
        self.masks, self.numbers, self.count = masks, numbers, 0

    def of(self, e: Expr, depth: int) -> Expr:
        """`depth` counts the names that led here."""
        self.count += 1
        if self.count > MAX_PARTS:
            raise MaskError(f"the mask has more than {MAX_PARTS} parts")
        if e.op in ("name", "call"):
            if depth > MAX_DEPTH:
                raise MaskError(f"the mask '{e.value}' is defined by itself")
            return self.of(self._definition(e), depth + 1)
        if e.op not in ALLOWED:
            raise MaskError(f"'{e.op}' has no place in a mask")
        return Expr(e.op, e.value, tuple(self.of(a, depth) for a in e.args))

    def _definition(self, e: Expr) -> Expr:
        """The body of a named mask, its parameters replaced; or the number that a name stands for."""
        for head, body in self.masks.items():
            pattern = _read(head)
            if pattern.value != e.value or pattern.op != e.op:
                continue
            names = [str(p.value) for p in pattern.args]
            if len(names) != len(e.args):
                raise MaskError(f"the mask '{head}' takes {len(names)} numbers, got {len(e.args)}")
            args = [self._tokens(head, a) for a in e.args] if LIBRARY.get(head) == body else e.args
            return _put(_read(body), dict(zip(names, args, strict=True)))
        if e.op == "name" and e.value in self.numbers:
            return Expr("num", self.numbers[str(e.value)])
        what = "mask" if e.op == "call" else "mask or sized dim"
        raise MaskError(f"no {what} is called '{e.value}'", did_you_mean(str(e.value), [*self.masks, *self.numbers]))

    def _tokens(self, head: str, arg: Expr) -> Expr:
        """An argument of a window or of chunks as a number, where it is one."""
        try:
            n = evaluate(arg, self.numbers)
        except ExprError:
            return arg
        if n < 1 or n != int(n):
            raise MaskError(f"the mask '{head}' takes a number of tokens, from 1 on, got {n}")
        return Expr("num", int(n))


def _put(e: Expr, given: Mapping[str, Expr]) -> Expr:
    if e.op == "name" and e.value in given:
        return given[str(e.value)]
    return Expr(e.op, e.value, tuple(_put(a, given) for a in e.args))
