"""Fewer choices for a body whose tables are too large: those that cost least with the best of their neighbours.

Then the solution need not be the least of all. It happens with two free axes and wide bodies (MM-DiT, MoE)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from specc.compiler.placement.problem import Choice, Problem, Use
from specc.compiler.placement.solve import Table

WIDTHS = (24, 16, 10, 6)  # choices of an equation that are left, from one try to the next


def thinned(p: Problem, width: int) -> Problem:
    """The same body with at most `width` choices for each equation, and the plain ones beside them."""
    scores = [w.copy() for w in p.work]
    for k, e in enumerate(p.body.eqns):
        for j, name in enumerate(e.outs):
            for u in p.uses.get(name, []):
                _add(p, scores, name, k, j, u)
    domains = tuple(_best(d, s, width) for d, s in zip(p.domains, scores, strict=True))
    return replace(p, domains=domains, width=width)


def _add(p: Problem, scores: list[Table], name: str, k: int, j: int, u: Use) -> None:
    """The least that moving a result to this use costs, to both sides."""
    table = p.table(name, p.gives(k, j), p.takes(u))
    scores[k] = scores[k] + table.min(1)
    scores[u.eqn] = scores[u.eqn] + table.min(0)


def _best(domain: tuple[Choice, ...], score: Table, width: int) -> tuple[Choice, ...]:
    kept = {int(i) for i in np.argsort(score, kind="stable")[:width]}
    return tuple(c for i, c in enumerate(domain) if i in kept or all(s.name == "rep" for s in c))
