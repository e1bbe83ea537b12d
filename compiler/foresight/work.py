"""What one rank computes and sends in a call of each body of a placed program, by shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from specc.compiler.cost import eqn_cost
from specc.compiler.foresight.ops import PRODUCTS, VIEWS
from specc.compiler.foresight.saved import Saved, saved_of
from specc.compiler.foresight.update import NO_OTHER, Update, updates_of
from specc.compiler.moments import orthogonalised
from specc.compiler.ops.route import MOVES_ROWS
from specc.compiler.placement.cost import Machine, collectives, divides
from specc.compiler.placement.placed import Placed, PlacedBody, PlacedEqn
from specc.compiler.placement.types import Layout
from specc.compiler.types import TensorType
from specc.spec.optimizer import ADAMW, OptimizerSpec

Kind = Literal["product", "loss", "attention", "rows"]


@dataclass(frozen=True)
class Kernel:
    """One op of a body on one rank, forward: `groups` products [m k] x [k n], or passes over `nbytes`.

    Of an attention m are the queries of all heads, n the keys, k the head dim; `causal` is the part not skipped. Of a
    `frozen` weight there is no gradient."""

    kind: Kind
    flops: float
    nbytes: float
    m: float = 1
    n: float = 1
    k: float = 1
    groups: int = 1
    causal: float = 1.0
    again: bool = False  # whether the backward of a loss makes its logits once more
    operand: str = ""  # what it reads first: products with one operand may be one
    frozen: bool = False


@dataclass(frozen=True)
class Message:
    """A collective on `nbytes` along an axis of the mesh, in the forward or the backward of a body.

    `copies` are the rows of one token in it, each for another expert."""

    kind: str
    nbytes: float
    axis: str
    is_forward: bool
    copies: float = 1.0


@dataclass(frozen=True)
class BodyWork:
    """What a call of a body takes, forward; `weights` are the numbers of its parameters that a rank uses, `experts`
    those of them that experts have, `width` the bytes of what it hands to the next call, `params` how many of
    them are trained.

    `saved` is what its backward needs. `frozen` are those of `weights` that are not trained, and `frozen_experts` those
    of experts among them; `narrow` if these are kept in the dtype of compute alone. `update` is what the optimizer's
    kind changes, of experts apart."""

    kernels: tuple[Kernel, ...]
    messages: tuple[Message, ...]
    weights: float
    experts: float
    width: float
    saved: Saved
    params: int = 0
    frozen: float = 0.0
    frozen_experts: float = 0.0
    narrow: bool = False
    update: Update = NO_OTHER
    experts_update: Update = NO_OTHER

    @property
    def trained(self) -> float:
        return self.weights - self.frozen

    @property
    def half(self) -> float:
        """Numbers that the weight half of its backward takes: operands of products, each once, and gradients of what
        they give."""
        products = [k for k in self.kernels if k.kind == "product"]
        operands = {k.operand or i: k.m * k.k * k.groups for i, k in enumerate(products)}
        return sum(operands.values()) + sum(k.m * k.n * k.groups for k in products)


def work_of(placed: Placed, itemsize: int = 2, optimizer: OptimizerSpec = ADAMW) -> dict[str, BodyWork]:
    """The work of each body, with numbers of so many bytes in compute."""
    machine = Machine(placed.mesh, itemsize=itemsize)
    frozen, narrow = placed.program.frozen_in(), bool(placed.program.adapters)
    bodies = placed.bodies.items()
    found = {n: replace(_body(b, frozen[n], machine, placed.sizes), narrow=narrow) for n, b in bodies}
    if optimizer.kind == "adamw":
        return found
    whole = orthogonalised(optimizer, placed.program)
    for call in placed.program.calls:
        b = placed.bodies[call.body]
        pairs = zip(b.body.params, call.params, strict=True)
        own = updates_of(optimizer, b, {p.name: whole[path] for p, path in pairs if path in whole}, machine)
        trained = {n: u for n, u in own.items() if n not in frozen[call.body]}
        grouped = _of_experts(b)
        experts = sum((u for n, u in trained.items() if n in grouped), NO_OTHER)
        others = sum((u for n, u in trained.items() if n not in grouped), NO_OTHER)
        found[call.body] = replace(found[call.body], update=others, experts_update=experts)
    return found


def grown(work: BodyWork, times: int) -> BodyWork:
    """The work for so many times the sequences: more rows in products, more of all values, the same weights."""
    if times == 1:
        return work
    kernels = (replace(k, flops=k.flops * times, nbytes=k.nbytes * times, m=k.m * times) for k in work.kernels)
    return replace(
        work, kernels=tuple(kernels),
        messages=tuple(replace(m, nbytes=m.nbytes * times) for m in work.messages), width=work.width * times,
        saved=Saved(**{name: n * times for name, n in vars(work.saved).items()}),
    )  # fmt: skip


def _body(b: PlacedBody, frozen: frozenset[str], machine: Machine, sizes: Mapping[str, int]) -> BodyWork:
    types = b.body.types()
    made = ((e, _kernel(e, types, machine, sizes)) for e in b.eqns)
    kernels = [replace(k, frozen=not frozen.isdisjoint(e.eqn.ins)) for e, k in made if k is not None]
    held = {
        p.name: machine.nbytes(p.type, at, sizes) / machine.itemsize
        for p, at in zip(b.body.params, b.params, strict=True)
    }
    grouped = _of_experts(b)
    width = sum(machine.nbytes(types[o], at, sizes) for o, at in zip(b.body.outs, b.outs, strict=True))
    messages = (*_moves(b, machine, sizes), *_inside(b, types, machine, sizes))
    return BodyWork(
        tuple(kernels), messages, sum(held.values()), sum(held[p] for p in grouped), width, saved_of(b, machine, sizes),
        len(held.keys() - frozen),
        sum(held[p] for p in frozen), sum(held[p] for p in grouped & frozen),
    )  # fmt: skip


def _of_experts(b: PlacedBody) -> set[str]:
    """The parameters that experts have."""
    params = {p.name for p in b.body.params}
    return {i for e in b.eqns if e.eqn.op == "grouped_linear" for i in e.eqn.ins if i in params}


def _kernel(e: PlacedEqn, types: Mapping[str, TensorType], machine: Machine, sizes: Mapping[str, int]) -> Kernel | None:
    """None for what is only a view."""
    op, axes = e.eqn.op, machine.mesh.axes
    if op in VIEWS:
        return None
    ins = [types[i] if i else None for i in e.eqn.ins]
    share = math.prod(a.size for s, a in zip(e.strategies, axes, strict=True) if divides(s))
    flops = eqn_cost(e.eqn, list(ins), sizes, machine.itemsize).flops / share
    local = [_numbers(t, e.takes(i), machine, sizes) for i, t in enumerate(ins)]
    out = sum(machine.nbytes(t, e.gives(j), sizes) / machine.itemsize for j, t in enumerate(e.eqn.types))
    nbytes = (2 * out if op == "embedding" else sum(local) + out) * machine.itemsize
    if op == "attend":
        return _attention(e, ins, flops, nbytes, local, machine, sizes)
    if op in ("linear_cross_entropy", "linear_log_prob"):
        rows = flops / 2 / local[1]
        again = op == "linear_log_prob"
        return Kernel("loss", flops, nbytes, rows, flops / 2 / local[0], local[0] / rows, again=again)
    if op in PRODUCTS:
        return _product(e, flops, nbytes, local, out)
    return Kernel("rows", 0.0, nbytes)


def _numbers(t: TensorType | None, at: Layout | None, machine: Machine, sizes: Mapping[str, int]) -> float:
    """How many a rank takes of an operand; masks are made block by block."""
    if t is None or at is None or t.dtype == "bool":
        return 0.0
    return machine.nbytes(t, at, sizes) / (8 if t.dtype == "int" else machine.itemsize)


def _product(e: PlacedEqn, flops: float, nbytes: float, local: list[float], out: float) -> Kernel:
    """m rows, whatever their dims: the operands have m k, k n and m n numbers, and the work is 2 m n k."""
    if e.eqn.op == "grouped_linear":
        x, weights, groups = local[0], local[2], 1
        m = max(1.0, 2 * x * out / flops) if flops else 1.0
        k, n = x / m, out / m
        groups = max(1, round(weights / (k * n)))
        return Kernel("product", flops, nbytes, m / groups, n, k, groups, operand=e.eqn.ins[0] or "")
    x, weights = local[0], local[1]
    m = math.sqrt(max(1.0, x * out / max(1.0, weights)))
    return Kernel("product", flops, nbytes, m, out / m, x / m, operand=e.eqn.ins[0] or "")


def _attention(
    e: PlacedEqn, ins: list[TensorType | None], flops: float, nbytes: float, local: list[float], machine: Machine,
    sizes: Mapping[str, int],
) -> Kernel:  # fmt: skip
    k = ins[1]
    assert k is not None
    dim, keys = k.shape(sizes)[-1], k.shape(sizes)[-3]
    causal = 1.0
    if e.eqn.attrs.get("causal"):
        cuts = (a.size for s, a in zip(e.strategies, machine.mesh.axes, strict=True) if s.name == "gather_kv")
        causal = 1 - 1 / (2 * math.prod(cuts))
    return Kernel("attention", flops, nbytes, local[0] / dim, keys, dim, causal=causal)


def _moves(b: PlacedBody, machine: Machine, sizes: Mapping[str, int]) -> Iterator[Message]:
    """What brings values to where equations take them: a value goes to each layout once."""
    types, layouts, axes = b.body.types(), b.layouts(), machine.mesh.axes
    wanted = [(n, at) for e in b.eqns for i, n in enumerate(e.eqn.ins) if n and (at := e.takes(i)) is not None]
    wanted += list(zip(b.body.outs, b.outs, strict=True))
    for name, at in dict.fromkeys(wanted):
        for m, before, forward, backward in collectives(layouts[name], at):
            nbytes = machine.nbytes(types[name], before, sizes, skip=m.axis)
            if forward:
                yield Message(forward, nbytes, axes[m.axis].name, True)
            if backward and types[name].dtype == "float":
                yield Message(backward, nbytes, axes[m.axis].name, False)


def _inside(
    b: PlacedBody, types: Mapping[str, TensorType], machine: Machine, sizes: Mapping[str, int]
) -> Iterator[Message]:
    """What a strategy itself sends: keys and values round a ring, rows to their experts and back."""
    for e in b.eqns:
        for a, s in enumerate(e.strategies):
            name = machine.mesh.axes[a].name
            if s.name in ("ring", "gather_kv") and e.eqn.op == "attend":
                found = [(types[i], e.takes(j)) for j, i in enumerate(e.eqn.ins[1:3], 1) if i]
                nbytes = sum(machine.nbytes(t, at, sizes, skip=a) for t, at in found if at is not None)
                yield Message("all-gather", nbytes, name, True)
                yield Message("all-gather", nbytes, name, False)
                yield Message("reduce-scatter", nbytes, name, False)
            elif s.name == "experts" and e.eqn.op in MOVES_ROWS:
                x, rows = types[e.eqn.ins[0] or ""], e.eqn.types[0]
                x, rows = (rows, x) if e.eqn.op == "combine" else (x, rows)
                others = (x.size for c, x in enumerate(machine.mesh.axes) if c != a and divides(e.strategies[c]))
                nbytes = machine.nbytes(rows, (), sizes) / math.prod(others)
                copies = rows.numel(sizes) / x.numel(sizes)
                yield Message("all-to-all", nbytes, name, True, copies)
                yield Message("all-to-all", nbytes, name, False, copies)
