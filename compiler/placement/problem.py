"""A body as a problem for the solver: a variable for each equation, and tables of what work and moves cost.

A value that several equations use has a variable of its own: the layout that it is moved to once for all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from specc.compiler.placement.cost import Machine, edge_cost, work_cost
from specc.compiler.placement.placed import PlacedBody, PlacedEqn, Strategy
from specc.compiler.placement.solve import Factor, Table, minimise
from specc.compiler.placement.types import Layout, fits
from specc.compiler.program import Body, Eqn
from specc.compiler.types import TensorType

Choice = tuple[Strategy, ...]  # one for each axis
Price = Callable[[TensorType, Layout], float]


@dataclass(frozen=True)
class Use:
    """Operand `operand` of equation `eqn`."""

    eqn: int
    operand: int


@dataclass(frozen=True)
class Problem:
    """A body with what its equations may choose. `held` is the price of a byte that an equation's result holds."""

    body: Body
    machine: Machine
    sizes: Mapping[str, int]
    domains: tuple[tuple[Choice, ...], ...]
    held: float = 0.0

    @cached_property
    def types(self) -> dict[str, TensorType]:
        return self.body.types()

    @cached_property
    def uses(self) -> dict[str, list[Use]]:
        found: dict[str, list[Use]] = {}
        for k, e in enumerate(self.body.eqns):
            for i, name in enumerate(e.ins):
                if name is not None:
                    found.setdefault(name, []).append(Use(k, i))
        return found

    @cached_property
    def rows(self) -> dict[str, str]:
        """Values that are a rank's own after a dispatch: rows keep their split, order and ends stay."""
        found: dict[str, str] = {}
        names = {e.types[0].dims[0].name for e in self.body.eqns if e.op == "dispatch"}
        for e in self.body.eqns:
            if e.op == "dispatch":
                found |= {e.outs[0]: "rows", e.outs[1]: "index", e.outs[2]: "index"}
            else:
                found |= {o: "rows" for o, t in zip(e.outs, e.types, strict=True) if t.dims and t.dims[0].name in names}
        return found

    @cached_property
    def _known(self) -> dict[tuple[str, Layout, Layout, bool], float]:
        return {}

    def takes(self, u: Use) -> list[Layout]:
        """The layout in which each choice of an equation takes an operand."""
        return [PlacedEqn(self.body.eqns[u.eqn], c).takes(u.operand) or () for c in self.domains[u.eqn]]

    def gives(self, k: int, j: int) -> list[Layout]:
        return [tuple(s.outs[j] for s in c) for c in self.domains[k]]

    def edge(self, name: str, src: Layout, dst: Layout, gradient: bool = True) -> float:
        """Seconds of moving a value; infinite where it may not be moved."""
        if src == dst:
            return 0.0
        key = (name, src, dst, gradient)
        if key not in self._known:
            kind = self.rows.get(name)
            stays = kind == "index" or (
                kind == "rows" and any(_cut(s) != _cut(d) for s, d in zip(src, dst, strict=True))
            )
            cost = math.inf if stays else edge_cost(self.types[name], src, dst, self.machine, self.sizes, gradient)
            self._known[key] = cost + TIE
        return self._known[key]

    def table(self, name: str, sources: Sequence[Layout], targets: Sequence[Layout], gradient: bool = True) -> Table:
        """Seconds from each source to each target."""
        rows, columns = list(dict.fromkeys(sources)), list(dict.fromkeys(targets))
        small = np.array([[self.edge(name, s, d, gradient) for d in columns] for s in rows])
        at_row, at_column = {x: i for i, x in enumerate(rows)}, {x: i for i, x in enumerate(columns)}
        found: Table = small[np.ix_([at_row[s] for s in sources], [at_column[d] for d in targets])]
        return found

    @cached_property
    def work(self) -> list[Table]:
        """Seconds of each choice of each equation, and the price of what it keeps for the backward."""
        return [np.array([self._work(e, c) for c in d]) for e, d in zip(self.body.eqns, self.domains, strict=True)]

    def _work(self, e: Eqn, choice: Choice) -> float:
        ins = [self.types[i] if i else None for i in e.ins]
        seconds = work_cost(e, ins, choice, self.machine, self.sizes)
        return seconds + self.held * sum(self.kept_bytes(e, choice))

    def kept_bytes(self, e: Eqn, choice: Choice) -> Iterator[float]:
        for j, t in enumerate(e.types):
            yield self.machine.nbytes(t, tuple(s.outs[j] for s in choice), self.sizes)


TIE = 1e-7  # seconds of a move that costs nothing: of equal plans the one with fewer moves


def _cut(place: object) -> bool:
    return str(place) == "S0"


def joint(
    e: Eqn, ins: Sequence[TensorType | None], each: Sequence[Sequence[Strategy]], machine: Machine,
    sizes: Mapping[str, int],
) -> tuple[Choice, ...]:  # fmt: skip
    """The combinations of one strategy an axis that leave no rest where two axes split one dim."""
    return tuple(c for c in itertools.product(*each) if _fits(e, ins, c, machine, sizes))


def _fits(e: Eqn, ins: Sequence[TensorType | None], c: Choice, machine: Machine, sizes: Mapping[str, int]) -> bool:
    if sum(not s.name.startswith(("rep", "linear")) for s in c) < 2:
        return True
    placed = PlacedEqn(e, c)
    values = [(t, placed.takes(i)) for i, t in enumerate(ins)] + [(t, placed.gives(j)) for j, t in enumerate(e.types)]
    return all(t is None or at is None or fits(t, at, machine.mesh, sizes) for t, at in values)


@dataclass(frozen=True)
class Solved:
    """A body's choices for given layouts of its operands and results, and what they cost in seconds."""

    seconds: float
    placed: PlacedBody
    kept_bytes: float


def solve(
    p: Problem, ins: Sequence[Layout], outs: Sequence[Layout], price: Price, without_gradient: frozenset[str]
) -> Solved | None:
    """The cheapest choices; None if no choices join. `price` is what a parameter in a layout of use costs."""
    body = p.body
    fixed = dict(zip((v.name for v in body.ins), ins, strict=True))
    wanted: dict[str, list[Layout]] = {}
    for name, at in zip(body.outs, outs, strict=True):
        wanted.setdefault(name, []).append(at)
    tables = _Tables(p, fixed, wanted, price, without_gradient)
    for k, e in enumerate(body.eqns):
        for j, name in enumerate(e.outs):
            tables.value(name, k, j)
    for v in body.ins:
        tables.operand(v.name)
    for q in body.params:
        tables.parameter(q.name)
    if not all(tables.counts):
        return None
    seconds, found = minimise(tables.counts, tables.factors)
    if not math.isfinite(seconds):
        return None
    eqns = tuple(PlacedEqn(e, p.domains[k][found[k]]) for k, e in enumerate(body.eqns))
    params = tuple(tables.use_of(q.name, found) for q in body.params)
    kept = sum(sum(p.kept_bytes(e.eqn, e.strategies)) for e in eqns)
    return Solved(seconds, PlacedBody(body, tuple(ins), params, eqns, tuple(outs)), kept)


class _Tables:
    """The tables of one problem, as they are put together."""

    def __init__(
        self, p: Problem, fixed: Mapping[str, Layout], wanted: Mapping[str, list[Layout]], price: Price,
        without_gradient: frozenset[str],
    ) -> None:  # fmt: skip
        self.p, self.fixed, self.wanted, self.price = p, fixed, wanted, price
        self.without_gradient = without_gradient
        self.counts = [len(d) for d in p.domains]
        self.factors: list[Factor] = [((k,), w) for k, w in enumerate(p.work)]
        self.shared: dict[str, tuple[int, list[Layout]]] = {}

    def value(self, name: str, k: int, j: int) -> None:
        """What moving result j of equation k to its uses costs."""
        uses, wanted, gives = self.p.uses.get(name, []), self.wanted.get(name, []), self.p.gives(k, j)
        if len(uses) + len(wanted) > 1:
            sources = list(dict.fromkeys(gives))
            m, pairs = self._shared(name, sources, uses, wanted)
            same = np.array([[0.0 if s == g else math.inf for s, _ in pairs] for g in gives])
            self.factors.append(((k, m), same.reshape(len(gives), -1)))
            return
        for u in uses:
            self.factors.append(((k, u.eqn), self.p.table(name, gives, self.p.takes(u))))
        for at in wanted:
            self.factors.append(((k,), self.p.table(name, gives, [at])[:, 0]))

    def _shared(
        self, name: str, sources: Sequence[Layout], uses: Sequence[Use], wanted: Sequence[Layout]
    ) -> tuple[int, list[tuple[Layout, Layout]]]:
        """A variable of (layout where made, layout moved to): uses that take either cost nothing more."""
        p = self.p
        targets = list(dict.fromkeys([*wanted, *(t for u in uses for t in p.takes(u))]))
        pairs = [(s, t) for s in sources for t in targets if math.isfinite(p.edge(name, s, t))]
        m = len(self.counts)
        self.counts.append(len(pairs))
        self.factors.append(((m,), np.array([p.edge(name, s, t) for s, t in pairs])))
        for u in uses:
            self.factors.append(((m, u.eqn), self._further(name, pairs, p.takes(u))))
        for want in wanted:
            self.factors.append(((m,), self._further(name, pairs, [want])[:, 0]))
        return m, pairs

    def _further(self, name: str, pairs: Sequence[tuple[Layout, Layout]], takes: Sequence[Layout]) -> Table:
        columns = list(dict.fromkeys(takes))
        at = {x: i for i, x in enumerate(columns)}
        small = np.array([[0.0 if d == t else self.p.edge(name, s, d) for d in columns] for s, t in pairs])
        found: Table = small.reshape(len(pairs), -1)[:, [at[d] for d in takes]]
        return found

    def operand(self, name: str) -> None:
        """A body's operand lies as it is given; one without a gradient is cut where it is used."""
        uses, wanted, src = self.p.uses.get(name, []), self.wanted.get(name, []), self.fixed[name]
        gradient = name not in self.without_gradient and self.p.types[name].dtype == "float"
        if len(uses) + len(wanted) > 1 and gradient:
            self._shared(name, [src], uses, wanted)
            return
        for u in uses:
            self.factors.append(((u.eqn,), self.p.table(name, [src], self.p.takes(u), gradient)[0]))
        for at in wanted:
            self.factors.append(((), np.array(self.p.edge(name, src, at, gradient))))

    def parameter(self, name: str) -> None:
        """A parameter's layout of use is what its equation takes; with several uses it is a variable."""
        uses, type_ = self.p.uses.get(name, []), self.p.types[name]
        if len(uses) == 1 and name not in self.wanted:
            takes = self.p.takes(uses[0])
            known = {t: self.price(type_, t) for t in dict.fromkeys(takes)}
            self.factors.append(((uses[0].eqn,), np.array([known[t] for t in takes])))
            return
        options = list(dict.fromkeys([*self.wanted.get(name, []), *(t for u in uses for t in self.p.takes(u))]))
        m = len(self.counts)
        self.counts.append(len(options))
        self.shared[name] = (m, options)
        self.factors.append(((m,), np.array([self.price(type_, t) for t in options])))
        for u in uses:
            self.factors.append(((m, u.eqn), self.p.table(name, options, self.p.takes(u))))
        for want in self.wanted.get(name, []):
            self.factors.append(((m,), self.p.table(name, options, [want])[:, 0]))

    def use_of(self, name: str, found: Sequence[int]) -> Layout:
        if name in self.shared:
            m, options = self.shared[name]
            return options[found[m]]
        u = self.p.uses[name][0]
        return self.p.takes(u)[found[u.eqn]]
