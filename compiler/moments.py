"""How an optimizer updates each parameter, and what it keeps of it: one table for training and for its memory.

Muon works on matrices. Which dims of a weight are inputs and which are results, the op says that uses it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from specc.compiler.program import Body, Eqn, Program
from specc.compiler.types import TensorType
from specc.compiler.vocabulary import LOSSES
from specc.spec.optimizer import SGD, Muon, OptimizerSpec

Rule = Literal["adamw", "muon", "lion", "sgd", "momentum"]
# Tensors of a parameter's shape that stay from step to step, by their names in checkpoints.
MOMENTS: Mapping[Rule, tuple[str, ...]] = {
    "adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum",), "lion": ("exp_avg",), "sgd": (),
    "momentum": ("momentum",),
}  # fmt: skip
AT_ONCE = 1 << 24  # numbers
# Ops that multiply by a matrix: the operand's place, and how many of its first dims count matrices of their own (of
# experts, say). Tables of rows (embedding) are no matrices.
PRODUCTS: Mapping[str, tuple[int, int]] = {
    "linear": (1, 0), "grouped_linear": (2, 1), "routed_linear": (2, 1), "conv": (1, 0),
}  # fmt: skip


@dataclass(frozen=True)
class Matrix:
    """The dims of a weight by their places: `ins` x `outs` is a matrix, `alike` count matrices of their own."""

    alike: tuple[int, ...]
    ins: tuple[int, ...]
    outs: tuple[int, ...]

    def sizes(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """How many matrices of how many rows (results) and columns (inputs) a weight of this shape is."""
        count, rows, columns = (math.prod(shape[d] for d in dims) for dims in (self.alike, self.outs, self.ins))
        return count, rows, columns

    def unstacked(self) -> Matrix | None:
        """Of one of the tensors that were stacked."""
        ins, outs = (tuple(d - 1 for d in dims) for dims in (self.ins, self.outs))
        return Matrix((), ins, outs) if self.alike == (0,) else None

    def rearranged(self, order: Sequence[int]) -> Matrix:
        """Of the tensor whose dim `order[j]` is dim j of this one."""
        alike, ins, outs = (tuple(order[d] for d in dims) for dims in (self.alike, self.ins, self.outs))
        return Matrix(alike, ins, outs)


def together(numel: int, ranks: int) -> int:
    """How many parameters Muon works on at once, of so many numbers on each of the ranks that share one: a multiple of
    these, and few enough for their numbers to take little memory."""
    return ranks * max(1, AT_ONCE // (numel * ranks))


def rule_of(spec: OptimizerSpec, is_matrix: bool) -> Rule:
    """How a parameter is updated."""
    if isinstance(spec, Muon):
        return "muon" if is_matrix else "adamw"
    if isinstance(spec, SGD):
        return "momentum" if spec.momentum else "sgd"
    return spec.kind


def settings_of(
    spec: OptimizerSpec, n_dims: Mapping[str, int], matrices: Collection[str]
) -> dict[str, tuple[Rule, float, float]]:
    """The rule of each parameter, of so many dims, what its rate is multiplied by, and its decay; `matrices` are those
    that `orthogonalised` found. The first of the spec's groups that matches a parameter counts.

    Without a word on decay, vectors, biases of whatever dims and what `no_decay` matches do not decay."""
    beside = (spec.adamw_lr or spec.lr) / spec.lr if isinstance(spec, Muon) else 1.0
    found: dict[str, tuple[Rule, float, float]] = {}
    for path, n in n_dims.items():
        rule = rule_of(spec, path in matrices)
        group = next((g for g in spec.groups if fnmatchcase(path, g.match)), None)
        is_free = n < 2 or path.rpartition(".")[2] == "bias" or any(fnmatchcase(path, p) for p in spec.no_decay)
        decay = 0.0 if is_free else spec.weight_decay
        if group is not None and group.weight_decay is not None:
            decay = group.weight_decay
        found[path] = rule, (group.lr_scale if group else 1.0) * (beside if rule == "adamw" else 1.0), decay
    return found


def orthogonalised(spec: OptimizerSpec, program: Program) -> dict[str, Matrix]:
    """The trained matrices of hidden layers, which Muon updates: what ops multiply by, but for heads (whose results are
    the classes of a loss), what is a table too, and what `adamw` names. With another optimizer there are none."""
    if not isinstance(spec, Muon):
        return {}
    classes = set(_classes(program))
    found: dict[str, Matrix | None] = {}
    for call in program.calls:
        body = program.bodies[call.body]
        uses = {p.name: uses_of(p.name, body, classes) for p in body.params}
        for path, p in zip(call.params, body.params, strict=True):
            for use in uses[p.name]:
                known = found.setdefault(path, use)
                found[path] = known if _alike(known, use) else None
    named = {p for p in found if any(fnmatchcase(p, pattern) for pattern in spec.adamw)}
    paths = program.trainable - named
    return {path: m for path in program.params if path in paths and (m := found.get(path)) is not None}


def _classes(program: Program) -> Iterator[str]:
    """The names of the dims that losses choose along."""
    for body in program.bodies.values():
        types = body.types()
        for e in body.eqns:
            if e.op in LOSSES:
                yield types[e.ins[LOSSES[e.op][0]] or ""].dims[-1].name


def _alike(a: Matrix | None, b: Matrix | None) -> bool:
    """Whether two uses see the same matrix, or one its transpose."""
    return a is not None and b is not None and a.alike == b.alike and {a.ins, a.outs} == {b.ins, b.outs}


def uses_of(name: str, body: Body, classes: Collection[str] = ()) -> Iterator[Matrix | None]:
    """The matrix that each use of a value makes of it; None for a use that makes none, or a head."""
    types = body.types()
    for e in body.eqns:
        for i, operand in enumerate(e.ins):
            if operand != name:
                continue
            if e.op == "rearrange" and (order := _order(e)):  # a tied weight, its dims in another order
                yield from (m and m.rearranged(order) for m in uses_of(e.outs[0], body, classes))
            elif e.op == "stack":  # of weights for each value of an attribute
                yield from (m and m.unstacked() for m in uses_of(e.outs[0], body, classes))
            elif e.op in PRODUCTS and PRODUCTS[e.op][0] == i:
                m = _matrix(e, types)
                yield None if any(types[name].dims[d].name in classes for d in m.outs) else m
            else:
                yield None


def _matrix(e: Eqn, types: Mapping[str, TensorType]) -> Matrix:
    """That of a product: its dims are those of many alike, then of inputs, then of results; a kernel's [o i ...]."""
    place, alike = PRODUCTS[e.op]
    n_dims, n_weight = len(types[e.ins[0] or ""].dims), len(types[e.ins[place] or ""].dims)
    dims = tuple(range(n_weight))
    if e.op == "conv":
        return Matrix((), dims[1:], dims[:1])
    n_in = (n_dims - len(e.types[0].dims) + n_weight - alike) // 2
    return Matrix(dims[:alike], dims[alike : alike + n_in], dims[alike + n_in :])


def _order(e: Eqn) -> tuple[int, ...]:
    """Which dim of its operand each dim of a rearranged value is; nothing if dims are joined or taken apart."""
    before, _, after = (side.split() for side in str(e.attrs["pattern"]).partition("->"))
    is_plain = len(set(before)) == len(before) and set(before) == set(after)
    return tuple(before.index(word) for word in after) if is_plain and "(" not in str(e.attrs["pattern"]) else ()
