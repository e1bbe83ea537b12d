"""The Placed program: for every value and mesh axis one of four types, and for every equation a strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from specc.compiler.placement.reshard import moves
from specc.compiler.placement.types import Layout, Mesh, Place, show
from specc.compiler.program import Body, Eqn, Program
from specc.compiler.types import TensorType


@dataclass(frozen=True)
class Strategy:
    """What an equation does along one axis: what it takes and what it gives.

    `name` is `rep` (every rank does the same), `split:DIM`, `sum:DIM` (a contracted dim: parts of a sum), `linear:I`
    (operand I is a partial sum and stays one), `linear` (all of them are), or that of an extra strategy of the op:
    `gather_kv`, `ring`, `kv_heads` (attention), `rows`, `vocab` (embedding, loss), `experts` (dispatch)."""

    name: str
    ins: tuple[Place | None, ...]
    outs: tuple[Place, ...]


@dataclass(frozen=True)
class PlacedEqn:
    """An equation with a strategy for each axis, and with the layouts that these give its operands and results."""

    eqn: Eqn
    strategies: tuple[Strategy, ...]

    def takes(self, i: int) -> Layout | None:
        """How operand i must lie; None for an operand left out."""
        if self.eqn.ins[i] is None:
            return None
        found = tuple(s.ins[i] for s in self.strategies)
        assert all(p is not None for p in found)
        return tuple(p for p in found if p is not None)

    def gives(self, j: int) -> Layout:
        return tuple(s.outs[j] for s in self.strategies)


@dataclass(frozen=True)
class PlacedBody:
    """A body with the layouts of its operands and results.

    `params` is how each parameter is used here; how it is kept between steps is the program's (Placed.params).
    Values go from the layout that they have to the one that an equation takes by `moves`; parameters are in the layout
    of their use when the body begins."""

    body: Body
    ins: tuple[Layout, ...]
    params: tuple[Layout, ...]
    eqns: tuple[PlacedEqn, ...]
    outs: tuple[Layout, ...]

    def layouts(self) -> dict[str, Layout]:
        """How every value lies where it is made."""
        known = {v.name: at for v, at in zip(self.body.ins, self.ins, strict=True)}
        known |= {p.name: at for p, at in zip(self.body.params, self.params, strict=True)}
        for e in self.eqns:
            known |= {o: e.gives(j) for j, o in enumerate(e.eqn.outs)}
        return known


@dataclass(frozen=True)
class Placed:
    """A program on a mesh. `params` says how each parameter, its gradient and its moments are kept between steps.

    `gathered` says when a parameter that is kept split is made whole: at each use (ZeRO-3) or once a step (1 and 2);
    `scattered` when its gradients are brought together: after each microbatch (2 and 3) or once a step."""

    program: Program
    mesh: Mesh
    sizes: Mapping[str, int]
    bodies: Mapping[str, PlacedBody]
    inputs: Mapping[str, Layout]
    params: Mapping[str, Layout]
    gather_each_use: bool = False
    reduce_each_microbatch: bool = False

    def __str__(self) -> str:
        lines = [f"placed {self.program.name} on {self.mesh}"]
        types = self.program.inputs
        lines += [f"  input %{n}: {types[n]} {show(at, self.mesh, types[n])}" for n, at in self.inputs.items()]
        lines += [f"  keep {p}: {show(at, self.mesh, self.program.params[p].type)}" for p, at in self.params.items()]
        return "\n".join([*lines, "", *(f"{text}\n" for b in self.bodies.values() for text in _body(b, self.mesh))])


def _body(b: PlacedBody, mesh: Mesh) -> Iterator[str]:
    types, layouts = b.body.types(), b.layouts()
    lines = [f"block {b.body.name}"]
    for own in (*(v.name for v in b.body.ins), *(p.name for p in b.body.params)):
        lines.append(f"  %{own}: {types[own]} {show(layouts[own], mesh, types[own])}")
    for e in b.eqns:
        for i, name in enumerate(e.eqn.ins):
            if name is not None and (line := _move(name, types[name], layouts[name], e.takes(i), mesh)):
                lines.append(line)
        names = " ".join(s.name for s in e.strategies)
        outs = ", ".join(f"%{o} {show(e.gives(j), mesh, types[o])}" for j, o in enumerate(e.eqn.outs))
        lines.append(f"  {e.eqn.op}({', '.join('%' + i if i else '-' for i in e.eqn.ins)}) [{names}] -> {outs}")
    for name, want in zip(b.body.outs, b.outs, strict=True):
        if line := _move(name, types[name], layouts[name], want, mesh):
            lines.append(line)
    yield "\n".join([*lines, f"  return {', '.join('%' + o for o in b.body.outs)}"])


def _move(name: str, type_: TensorType, src: Layout, dst: Layout | None, mesh: Mesh) -> str:
    if dst is None or src == dst or not moves(src, dst):
        return ""
    return f"  %{name}: {show(src, mesh, type_)} => {show(dst, mesh, type_)}"
