"""The tables of a body's problem, put together for given layouts around it; and its solution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from specc.compiler.placement.placed import PlacedBody, PlacedEqn
from specc.compiler.placement.problem import OWN, TIE, Piece, Price, Problem, Solved, Use
from specc.compiler.placement.solve import Factor, Table, TooLarge, minimise
from specc.compiler.placement.thin import WIDTHS, thinned
from specc.compiler.placement.types import Layout

Pair = tuple[Layout, Layout | None]


def solve(
    p: Problem, ins: Sequence[Layout], outs: Sequence[Layout], price: Price, without_gradient: frozenset[str],
    per_byte: float = 0.0,
) -> Solved | None:  # fmt: skip
    """The cheapest choices; None if no choices join. `price` is what a parameter in a layout of use costs, `per_byte`
    what a byte that waits for the backward does. Exact, unless the body's tables are too large for that."""
    if not p.thin:
        try:
            return _exact(p, ins, outs, price, without_gradient, per_byte)
        except TooLarge:
            p.thin.update((width, thinned(p, width)) for width in WIDTHS)
    for fewer in p.thin.values():
        try:
            return _exact(fewer, ins, outs, price, without_gradient, per_byte)
        except TooLarge:
            continue
    raise TooLarge


def _exact(
    p: Problem, ins: Sequence[Layout], outs: Sequence[Layout], price: Price, without_gradient: frozenset[str],
    per_byte: float,
) -> Solved | None:  # fmt: skip
    body = p.body
    wanted: dict[str, tuple[Layout, ...]] = {}
    for name, at in zip(body.outs, outs, strict=True):
        wanted[name] = (*wanted.get(name, ()), at)
    tables = _Tables(p, wanted, price)
    tables.factors += [((k,), w + per_byte * h) for k, (w, h) in enumerate(zip(p.work, p.held, strict=True))]
    for k, e in enumerate(body.eqns):
        for j, name in enumerate(e.outs):
            tables.value(name, k, j)
    for v, src in zip(body.ins, ins, strict=True):
        tables.operand(v.name, src, v.name not in without_gradient and v.type.dtype == "float")
    for q in body.params:
        tables.parameter(q.name)
    if not all(tables.counts):
        return None
    total, found = minimise(tables.counts, tables.factors)
    if not math.isfinite(total):
        return None
    eqns = tuple(PlacedEqn(e, p.domains[k][found[k]]) for k, e in enumerate(body.eqns))
    params = tuple(tables.use_of(q.name, found) for q in body.params)
    held = sum(float(p.held[k][found[k]]) for k in range(len(eqns)))
    prices = sum(price(q.type, use) for q, use in zip(body.params, params, strict=True))
    placed = PlacedBody(body, tuple(ins), params, eqns, tuple(outs))
    return Solved(placed, total, total - prices - per_byte * held, held)


class _Tables:
    """The tables of one problem, as they are put together."""

    def __init__(self, p: Problem, wanted: Mapping[str, tuple[Layout, ...]], price: Price) -> None:
        self.p, self.wanted, self.price = p, wanted, price
        self.counts = [len(d) for d in p.domains]
        self.factors: list[Factor] = []
        self.shared: dict[str, tuple[int, list[Layout]]] = {}

    def value(self, name: str, k: int, j: int) -> None:
        """What moving result j of equation k to its uses costs."""
        wanted = self.wanted.get(name, ())
        key = (name, wanted)
        if key not in self.p.pieces:
            self.p.pieces[key] = _of_result(self.p, name, k, j, wanted)
        self._add(self.p.pieces[key])

    def operand(self, name: str, src: Layout, gradient: bool) -> None:
        """What moving an operand of the body, which lies as it is given, to its uses costs."""
        wanted = self.wanted.get(name, ())
        key = (name, src, wanted)
        if key not in self.p.pieces:
            self.p.pieces[key] = _of_operand(self.p, name, src, wanted, gradient)
        self._add(self.p.pieces[key])

    def _add(self, piece: Piece) -> None:
        own = len(self.counts)
        if piece.count or any(OWN in scope for scope, _ in piece.factors):
            self.counts.append(piece.count)
        self.factors += [(tuple(own if v == OWN else v for v in scope), table) for scope, table in piece.factors]

    def parameter(self, name: str) -> None:
        """A parameter's layout of use is what its equation takes; with several uses it is a variable."""
        uses, type_, wanted = self.p.uses.get(name, []), self.p.types[name], self.wanted.get(name, ())
        if len(uses) == 1 and not wanted:
            takes = self.p.takes(uses[0])
            known = {t: self.price(type_, t) for t in dict.fromkeys(takes)}
            self.factors.append(((uses[0].eqn,), np.array([known[t] for t in takes])))
            return
        options = list(dict.fromkeys([*wanted, *(t for u in uses for t in self.p.takes(u))]))
        m = len(self.counts)
        self.counts.append(len(options))
        self.shared[name] = (m, options)
        self.factors.append(((m,), np.array([self.price(type_, t) for t in options])))
        for u in uses:
            self.factors.append(((m, u.eqn), self.p.table(name, options, self.p.takes(u))))
        for want in wanted:
            self.factors.append(((m,), self.p.table(name, options, [want])[:, 0]))

    def use_of(self, name: str, found: Sequence[int]) -> Layout:
        if name in self.shared:
            m, options = self.shared[name]
            return options[found[m]]
        u = self.p.uses[name][0]
        return self.p.takes(u)[found[u.eqn]]


def _of_result(p: Problem, name: str, k: int, j: int, wanted: Sequence[Layout]) -> Piece:
    uses, gives = p.uses.get(name, []), p.gives(k, j)
    if len(uses) + len(wanted) > 1:
        pairs, factors = _shared(p, name, list(dict.fromkeys(gives)), uses, wanted)
        same = np.array([[0.0 if s == g else math.inf for s, _ in pairs] for g in gives])
        return Piece((*factors, ((k, OWN), same.reshape(len(gives), -1))), len(pairs))
    moved = [((k, u.eqn), p.table(name, gives, p.takes(u))) for u in uses]
    return Piece((*moved, *(((k,), p.table(name, gives, [at])[:, 0]) for at in wanted)))


def _of_operand(p: Problem, name: str, src: Layout, wanted: Sequence[Layout], gradient: bool) -> Piece:
    uses = p.uses.get(name, [])
    if len(uses) + len(wanted) > 1 and gradient:
        pairs, factors = _shared(p, name, [src], uses, wanted)
        return Piece(tuple(factors), len(pairs))
    moved = [((u.eqn,), p.table(name, [src], p.takes(u), gradient)[0]) for u in uses]
    return Piece((*moved, *(((), np.array(p.edge(name, src, at, gradient))) for at in wanted)))


def _shared(
    p: Problem, name: str, sources: Sequence[Layout], uses: Sequence[Use], wanted: Sequence[Layout]
) -> tuple[list[Pair], list[Factor]]:
    """A variable of (layout where made, layout moved to for several uses or None): uses that take either pay no more.

    Only what several uses can take is worth a move for all of them, and only if the move costs something."""
    counts = Counter([*wanted, *(t for u in uses for t in dict.fromkeys(p.takes(u)))])
    targets = [t for t, n in counts.items() if n > 1]
    moved = [(s, t) for s in sources for t in targets if TIE < p.edge(name, s, t) < math.inf]
    if p.width:
        moved = sorted(moved, key=lambda m: (-counts[m[1]], p.edge(name, *m)))[: p.width]
    pairs: list[Pair] = [*((s, None) for s in sources), *moved]
    factors: list[Factor] = [((OWN,), np.array([p.edge(name, s, t) if t is not None else 0.0 for s, t in pairs]))]
    factors += [((OWN, u.eqn), _further(p, name, pairs, p.takes(u))) for u in uses]
    factors += [((OWN,), _further(p, name, pairs, [want])[:, 0]) for want in wanted]
    return pairs, factors


def _further(p: Problem, name: str, pairs: Sequence[Pair], takes: Sequence[Layout]) -> Table:
    columns = list(dict.fromkeys(takes))
    at = {x: i for i, x in enumerate(columns)}
    small = np.array([[0.0 if d == t else p.edge(name, s, d) for d in columns] for s, t in pairs])
    found: Table = small.reshape(len(pairs), -1)[:, [at[d] for d in takes]]
    return found
