"""Which dims of each operand and result a rule's letters stand for, from the numbers of dims alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from specc.compiler.rules import Pattern, Rule

MAX_DIMS = 8


def spans(rule: Rule, ins: Sequence[int | None], outs: Sequence[int]) -> list[dict[str, range]]:
    """A range of dims for each letter, for operands and then results; nothing for an operand left out."""
    ranks = [*ins, *[None] * (len(rule.ins) - len(ins)), *outs]
    patterns = [*rule.ins, *rule.outs]
    many = list(dict.fromkeys(t.letter for p in patterns for t in p if t.many))
    for lengths in itertools.product(range(MAX_DIMS + 1), repeat=len(many)):
        known = dict(zip(many, lengths, strict=True))
        if all(r is None or sum(known.get(t.letter, 1) for t in p) == r for p, r in zip(patterns, ranks, strict=True)):
            return [{} if r is None else _places(p, known) for p, r in zip(patterns, ranks, strict=True)]
    raise AssertionError(f"no dims of {ranks} fit {rule}")


def _places(pattern: Pattern, lengths: dict[str, int]) -> dict[str, range]:
    found: dict[str, range] = {}
    at = 0
    for t in pattern:
        n = lengths.get(t.letter, 1)
        found[t.letter] = range(at, at + n)
        at += n
    return found
