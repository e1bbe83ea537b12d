"""A body as a problem for the solver: a variable for each equation, and tables of what work and moves cost.

A value that several equations use has a variable of its own: the layout that it is moved to once for all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from specc.compiler.placement.cost import Machine, edge_cost, work_cost
from specc.compiler.placement.placed import PlacedBody, PlacedEqn, Strategy
from specc.compiler.placement.solve import Factor, Table
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
class Piece:
    """The tables of one value; OWN stands for a variable of its own with `count` values, if it has one."""

    factors: tuple[Factor, ...]
    count: int = 0


OWN = -1


@dataclass(frozen=True)
class Problem:
    """A body with what its equations may choose. `width` bounds the moves that several uses may share; 0: all."""

    body: Body
    machine: Machine
    sizes: Mapping[str, int]
    domains: tuple[tuple[Choice, ...], ...]
    width: int = 0

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
    def _known(self) -> dict[tuple[object, ...], float]:
        return {}

    @cached_property
    def thin(self) -> dict[int, Problem]:
        """The same with fewer choices, by how many; empty while all of them can be solved."""
        return {}

    @cached_property
    def pieces(self) -> dict[tuple[object, ...], Piece]:
        """Tables that were put together before, by value and what is fixed around it."""
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
        kind = self.rows.get(name)
        key = (self.types[name], kind, src, dst, gradient)
        if key not in self._known:
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
        """Seconds of each choice of each equation."""
        return [np.array([self._work(e, c) for c in d]) for e, d in zip(self.body.eqns, self.domains, strict=True)]

    @cached_property
    def held(self) -> list[Table]:
        """Bytes of each choice's results, which wait for the backward."""
        return [
            np.array([held_bytes(self, e, c) for c in d]) for e, d in zip(self.body.eqns, self.domains, strict=True)
        ]

    def _work(self, e: Eqn, choice: Choice) -> float:
        return work_cost(e, [self.types[i] if i else None for i in e.ins], choice, self.machine, self.sizes)


def held_bytes(p: Problem, e: Eqn, choice: Choice) -> float:
    """What waits for the backward; masks do not: they are made again, block by block."""
    made = [(t, tuple(s.outs[j] for s in choice)) for j, t in enumerate(e.types) if t.dtype != "bool"]
    return sum(p.machine.nbytes(t, at, p.sizes) for t, at in made)


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
    """A body's choices for given layouts of its operands and results. `total` is what was minimised; `seconds` are
    those of work and moves alone, `held` the bytes that wait for the backward."""

    placed: PlacedBody
    total: float
    seconds: float
    held: float
