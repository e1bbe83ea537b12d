"""What the forward of a body keeps for its backward, if nothing is done again: by op, each value once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from specc.compiler.foresight.ops import PRODUCTS
from specc.compiler.placement.cost import Machine
from specc.compiler.placement.linearity import is_linear
from specc.compiler.placement.placed import PlacedBody, PlacedEqn
from specc.compiler.types import TensorType
from specc.spec.expr import Expr

# What has a gradient that needs none of its operands.
LINEAR = (
    "rope", "embedding", "mask", "mean", "sum", "one_hot", "argmax", "rearrange", "concat", "split", "slice", "pick",
    "unbind", "take", "rename", "index", "expand", "upsample", "stack", "topk", "dispatch", "row_gates",
    "combine", "sinusoidal", "dropout",
)  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """Bytes on a rank: of `values`, and of those what came in (`entered`), what products give (`products`) and what
    attention gives (`attended`). `scores` are the numbers of attention's scores, `masks` of what dropout decided.

    Beyond `values` are those between the steps of formulas (`steps`), which are kept if each step is a kernel, and what
    products take beyond what was made for them (`gathered`), which is kept if it is not gathered again."""

    values: float = 0.0
    entered: float = 0.0
    products: float = 0.0
    attended: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    steps: float = 0.0
    gathered: float = 0.0


def saved_of(b: PlacedBody, machine: Machine, sizes: Mapping[str, int]) -> Saved:
    """A value is kept as it was made, before it is brought to where an equation takes it."""
    types, layouts, params = b.body.types(), b.layouts(), {p.name for p in b.body.params}

    def nbytes(names: Iterable[str]) -> float:
        wanted = [n for n in dict.fromkeys(names) if n not in params and types[n].dtype == "float"]
        return sum(machine.nbytes(types[n], layouts[n], sizes) for n in wanted)

    def made(*ops: str) -> float:
        return nbytes([e.eqn.outs[0] for e in b.eqns if e.eqn.op in ops])

    return Saved(
        nbytes(n for e in b.eqns for n in _kept(e, types)), nbytes([v.name for v in b.body.ins]), made(*PRODUCTS),
        made("attend"), sum(_scores(e, types, machine, sizes) for e in b.eqns), made("dropout") / machine.itemsize,
        sum(max(nbytes([name]) for name in names) for e in b.eqns for names in _between(e, types)),
        _gathered(b, machine, sizes),
    )  # fmt: skip


def _kept(e: PlacedEqn, types: Mapping[str, TensorType]) -> Iterator[str]:
    """The operands that an equation's backward needs."""
    ins = [i for i in e.eqn.ins if i is not None]
    if e.eqn.op in LINEAR:
        return
    if e.eqn.op != "expr" or not _passes_sums(e, ins, types):
        yield from ins


def _passes_sums(e: PlacedEqn, ins: list[str], types: Mapping[str, TensorType]) -> bool:
    """Whether a formula is linear in its operands, so that its gradient needs none of them."""
    formula = e.eqn.attrs["formula"]
    assert isinstance(formula, Expr)
    names = zip(formula.names(), ins, strict=True)
    return is_linear(formula, {name for name, i in names if types[i].dtype == "float"})


def _between(e: PlacedEqn, types: Mapping[str, TensorType]) -> list[list[str]]:
    """The parts of a formula whose values the backward of another part needs: the operands of each, of which the
    largest is as large as the part."""
    if e.eqn.op != "expr":
        return []
    formula, kept = e.eqn.attrs["formula"], set[Expr]()
    assert isinstance(formula, Expr)
    floats = {name: i for name, i in zip(formula.names(), e.eqn.ins, strict=True) if i and types[i].dtype == "float"}
    for part in formula.walk():
        args = [a for a in part.args if floats.keys() & set(a.names())]
        if part.op not in ("+", "-", "neg") and not (part.op == "*" and len(args) < 2):
            kept |= {a for a in args if a.args}
    return [[floats[name] for name in part.names() if name in floats] for part in kept]


def _gathered(b: PlacedBody, machine: Machine, sizes: Mapping[str, int]) -> float:
    """Bytes of what products take, over those of the same values as they were made."""
    types, layouts = b.body.types(), b.layouts()
    heads = ("linear_cross_entropy", "linear_log_prob")
    products = [e for e in b.eqns if e.eqn.op in (*PRODUCTS, *heads) and e.eqn.ins[0]]
    more: dict[str, float] = {}
    for e in products:
        name, at = e.eqn.ins[0] or "", e.takes(0)
        assert at is not None
        made = machine.nbytes(types[name], layouts[name], sizes)
        more[name] = max(more.get(name, 0.0), machine.nbytes(types[name], at, sizes) - made)
    return sum(more.values())


def _scores(e: PlacedEqn, types: Mapping[str, TensorType], machine: Machine, sizes: Mapping[str, int]) -> float:
    """Numbers of queries times keys times heads on a rank."""
    if e.eqn.op != "attend":
        return 0.0
    q, k, at = types[e.eqn.ins[0] or ""], types[e.eqn.ins[1] or ""], e.takes(0)
    assert at is not None
    return machine.nbytes(q, at, sizes) / machine.itemsize / q.shape(sizes)[-1] * math.prod(k.shape(sizes)[-3:-2])
