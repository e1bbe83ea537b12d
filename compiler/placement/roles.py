"""Which dims are batch and which are sequences, followed through a program, and what an axis's role makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from specc.compiler.ops.route import MOVES_ROWS
from specc.compiler.ops.row import Op
from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.strategies import strategies
from specc.compiler.placement.types import Axis, Mesh, Role
from specc.compiler.program import Body, Eqn, Program
from specc.spec.expr import parse

Kind = Literal["batch", "sequence"]
Context = Literal["auto", "ulysses", "ring", "gather"]
Marks = frozenset[tuple[str, int]]  # values of a body and the place of their marked dim
KIND_OF: Mapping[Role, Kind] = {"batch": "batch", "experts": "batch", "sequence": "sequence"}
ANY = Axis("any", 1)
WEIGHT_AT = {
    "linear": 1, "embedding": 1, "linear_cross_entropy": 1, "linear_log_prob": 1, "conv": 1, "grouped_linear": 2,
    "routed_linear": 2,
}  # fmt: skip
EXPERT_OPS = (*MOVES_ROWS, "grouped_linear")
CONTEXT: Mapping[Context, tuple[str, ...]] = {"ring": ("ring",), "gather": ("gather_kv",), "ulysses": ()}


def batch_dims(program: Program) -> set[str]:
    """The first dim of each input."""
    return {t.dims[0].name for t in program.inputs.values() if t.dims}


def sequence_dims(program: Program) -> set[str]:
    """The dims along which tokens attend, and the parts of joined ones (`N + T`); else those of index inputs."""
    found: set[str] = set()
    for body in program.bodies.values():
        types = body.types()
        for e in body.eqns:
            for i in e.ins[:2] if e.op == "attend" else ():
                if i is not None and types[i].dims[-3].name != "keys":
                    dim = types[i].dims[-3]
                    found |= {dim.name} if dim.is_plain else set(parse(dim.name).names())
    return found or {t.dims[1].name for t in program.inputs.values() if t.dtype == "int" and len(t.dims) > 1}


@dataclass(frozen=True)
class Followed:
    """The marked dims of each body's values, by kind."""

    marks: Mapping[str, Mapping[Kind, Marks]]
    names: Mapping[Kind, frozenset[str]]


def follow(program: Program, sizes: Mapping[str, int], own: Mapping[str, Op] | None = None) -> Followed:
    """Dims by name, and what ops make of them: a renamed batch, rows of sorted tokens."""
    names: dict[Kind, frozenset[str]] = {
        "batch": frozenset(batch_dims(program)), "sequence": frozenset(sequence_dims(program)),
    }  # fmt: skip
    marks = {
        name: {kind: _marks(body, names[kind], sizes, own) for kind in names} for name, body in program.bodies.items()
    }
    return Followed(marks, names)


def _marks(body: Body, names: frozenset[str], sizes: Mapping[str, int], own: Mapping[str, Op] | None) -> Marks:
    params = {p.name for p in body.params}
    types = body.types()
    found = {(v, p) for v, t in types.items() if v not in params for p, d in enumerate(t.dims) if d.name in names}
    for e in body.eqns:
        for s in strategies(e, [types[i] if i else None for i in e.ins], ANY, sizes, own):
            if _reads(s, e, found, params):
                found |= {(o, at.dim) for o, at in zip(e.outs, s.outs, strict=True) if at.kind == "S"}
    return frozenset(found)


def _reads(s: Strategy, e: Eqn, marks: set[tuple[str, int]] | Marks, params: set[str]) -> bool:
    """Whether all values that a strategy takes split are split on marked dims."""
    split = [(i, at.dim) for i, at in zip(e.ins, s.ins, strict=True) if i and i not in params and at and at.kind == "S"]
    return bool(split) and all(m in marks for m in split)


def touches(s: Strategy, e: Eqn, marks: Marks, params: set[str]) -> bool:
    """Whether a strategy splits a marked dim."""
    made = any(at.kind == "S" and (o, at.dim) in marks for o, at in zip(e.outs, s.outs, strict=True))
    takes = any(i not in params and at is not None and at.kind == "S" for i, at in zip(e.ins, s.ins, strict=True))
    return _reads(s, e, marks, params) if takes else made


@dataclass(frozen=True)
class Ways:
    """What options say of the choice: the context strategy, tensor-parallel axes, and whether those split sequences."""

    context: Context = "auto"
    split_weights: tuple[str, ...] = ("tp",)
    sequence_parallel: bool | None = None


def context_of(axis: Axis, mesh: Mesh, context: Context) -> Context:
    """How attention goes along a sequence axis: one called `ring` in a ring, and another beside it by heads."""
    if axis.name == "ring":
        return "ring"
    return "ulysses" if context == "auto" and any(a.name == "ring" for a in mesh.axes) else context


def allowed(
    e: Eqn, found: Sequence[Strategy], axis: Axis, marks: Mapping[Kind, Marks], params: set[str], ways: Ways
) -> list[Strategy]:
    """The strategies that an axis of this role lets the solver choose from."""
    if axis.role == "free":
        return _free(e, found, axis, marks, params, ways)
    if axis.role == "experts" and e.op in EXPERT_OPS:
        return [s for s in found if s.name == "experts"]
    hits = [s for s in found if touches(s, e, marks[KIND_OF[axis.role]], params) and s.name != "experts"]
    within = [s for s in found if axis.role != "sequence" or not touches(s, e, marks["batch"], params)]
    if e.op == "attend" and axis.role == "sequence":
        return _attention(within, hits, ways.context)
    if hits:
        return hits
    if axis.role == "sequence" and not any(i in params for i in e.ins):
        return within
    return [s for s in found if s.name.startswith(("rep", "linear"))]


def _free(
    e: Eqn, found: Sequence[Strategy], axis: Axis, marks: Mapping[Kind, Marks], params: set[str], ways: Ways
) -> list[Strategy]:
    """All; a tensor-parallel axis leaves the batch whole, and splits weights where an equation can."""
    left = [s for s in found if s.name != "experts"]  # all of a layer's equations would have to agree on it
    if ways.sequence_parallel is False:
        left = [s for s in left if not touches(s, e, marks["sequence"], params)]
    if axis.name not in ways.split_weights:
        return left
    left = [s for s in left if not touches(s, e, marks["batch"], params)]
    if ways.sequence_parallel and _keeps_sequence(e, left, marks["sequence"]):
        left = [s for s in left if s.name != "rep"]
    return _split_weights(e, left)


def _keeps_sequence(e: Eqn, found: Sequence[Strategy], marks: Marks) -> bool:
    """Whether an equation of real numbers gives values along a sequence that it can be split on."""
    made = [(o, at.dim) for s in found for o, at in zip(e.outs, s.outs, strict=True) if at.kind == "S"]
    return e.op not in EXPERT_OPS and e.types[0].dtype == "float" and any(m in marks for m in made)


def _attention(found: Sequence[Strategy], hits: Sequence[Strategy], context: Context) -> list[Strategy]:
    """The chosen context strategy; heads are split where queries cannot be."""
    heads = [s for s in found if s not in hits and s.name.startswith(("split", "kv_heads"))]
    if context == "auto":
        return [*hits, *heads] or list(found)
    chosen = [s for s in hits if s.name in CONTEXT[context]] or [s for s in hits if s.name == "gather_kv"]
    return heads or list(found) if context == "ulysses" or not chosen else chosen


def _split_weights(e: Eqn, found: Sequence[Strategy]) -> list[Strategy]:
    """Only strategies that split the equation's weight, if there are any."""
    at = WEIGHT_AT.get(e.op)
    if e.op == "attend":
        return [s for s in found if not s.name.startswith("rep")] or list(found)
    hits = [s for s in found if at is not None and (w := s.ins[at]) is not None and w.kind == "S"]
    return hits or list(found)
