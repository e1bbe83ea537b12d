"""Exact minimum of a sum of small tables, by eliminating one variable after another (min-plus).

What it takes grows with the tables that elimination makes, so it is for graphs that are nearly chains; blocks are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
Factor = tuple[tuple[int, ...], Table]
MAX_TABLE = 6_000_000


class TooLarge(Exception):
    """A table of the elimination would not fit."""


def minimise(sizes: Sequence[int], factors: Sequence[Factor]) -> tuple[float, list[int]]:
    """The least total and a value for each variable; the first of equals, so the result is always the same."""
    tables = [_sorted(f) for f in factors]
    left = set(range(len(sizes)))
    trace: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
    while left:
        v, scope = _next(left, tables, sizes)
        if math.prod(sizes[i] for i in scope) > MAX_TABLE:
            raise TooLarge
        joined = np.zeros([sizes[i] for i in scope])
        for s, table in tables:
            if v in s:
                joined = joined + table.reshape([sizes[i] if i in s else 1 for i in scope])
        tables = [f for f in tables if v not in f[0]]
        k = scope.index(v)
        rest = (*scope[:k], *scope[k + 1 :])
        trace.append((v, rest, joined.argmin(k)))
        tables.append((rest, joined.min(k)))
        left.remove(v)
    found = [0] * len(sizes)
    for v, rest, best in reversed(trace):
        found[v] = int(best[tuple(found[i] for i in rest)])
    return float(sum(float(table) for _, table in tables)), found


def _sorted(factor: Factor) -> Factor:
    scope, table = factor
    order = sorted(range(len(scope)), key=lambda k: scope[k])
    return tuple(scope[k] for k in order), table.transpose(order)


def _next(left: set[int], tables: Sequence[Factor], sizes: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """The variable whose elimination makes the smallest table, and the variables of that table."""
    scopes = {v: {v} for v in left}
    for s, _ in tables:
        for v in s:
            scopes[v].update(s)
    v = min(sorted(left), key=lambda v: math.prod(sizes[i] for i in scopes[v]))
    return v, tuple(sorted(scopes[v]))
