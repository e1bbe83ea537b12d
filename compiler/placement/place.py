"""From a Program to a Placed: axes' roles, layouts between calls, the solver's choices in bodies, kept parameters."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from specc.compiler.ops.row import Op
from specc.compiler.placement.boundary import Group, Rule, groups, lay, partial_outs
from specc.compiler.placement.cost import H100, NVLINK, Device, Links, Machine
from specc.compiler.placement.params import keep, price_of
from specc.compiler.placement.placed import Placed, Strategy
from specc.compiler.placement.problem import Problem, Solved, joint, solve
from specc.compiler.placement.refuse import check_axes, no_plan, no_way
from specc.compiler.placement.roles import Context, Followed, Ways, allowed, follow
from specc.compiler.placement.strategies import strategies
from specc.compiler.placement.types import Layout, Mesh
from specc.compiler.program import Body, Program

Zero = Literal[0, 1, 2, 3]


@dataclass(frozen=True)
class Options:
    """What a user may say. `split_weights` names free axes on which weights are used split: tensor parallelism.

    `sequence_parallel` says whether free axes split sequences between blocks; None: what is cheaper. `pins` gives the
    equations of a path their strategy along an axis: {"layers.attention.q": {"tp": "split:H"}}."""

    zero: Zero | Literal["auto"] = 0
    sequence_parallel: bool | None = None
    context: Context = "auto"
    capacity: float | None = None
    itemsize: int = 4
    pins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    split_weights: tuple[str, ...] = ("tp",)
    device: Device = H100
    links: Links = NVLINK


def place(
    program: Program, mesh: Mesh, sizes: Mapping[str, int], options: Options = Options(),
    own: Mapping[str, Op] | None = None,
) -> Placed:  # fmt: skip
    """The cheapest placement that the axes' roles and the options allow. Raises SpecError where there is none."""
    machine = Machine(mesh, options.device, options.links, options.itemsize)
    followed = follow(program, sizes, own)
    check_axes(program, mesh, sizes, followed)
    each = {name: _choices(program, body, mesh, sizes, options, followed, own) for name, body in program.bodies.items()}
    between = groups(program, followed)
    sums = partial_outs(program, each)
    problems = {name: _problem(program.bodies[name], each[name], machine, sizes) for name in program.bodies}
    best: tuple[float, dict[str, Solved], dict[str, Layout]] | None = None
    for rules in _rules(mesh, options):
        layouts = [lay(g, mesh, rules, program, sizes, options.context, sums) for g in between]
        found = _solve_all(program, problems, between, layouts, machine, sizes)
        if found is not None and (best is None or found[0] < best[0]):
            best = (*found, {v: at for g, at in zip(between, layouts, strict=True) for v in g.values})
    if best is None:
        raise no_plan(mesh)
    bodies = {name: s.placed for name, s in best[1].items()}
    zero: Zero = 0 if options.zero == "auto" else options.zero
    return Placed(
        program, mesh, dict(sizes), bodies, {n: best[2][n] for n in program.inputs}, keep(program, bodies, mesh, zero),
        gather_each_use=zero == 3, reduce_each_microbatch=zero >= 2,
    )  # fmt: skip


def _choices(
    program: Program, body: Body, mesh: Mesh, sizes: Mapping[str, int], options: Options, followed: Followed,
    own: Mapping[str, Op] | None,
) -> list[list[list[Strategy]]]:  # fmt: skip
    """For each equation and axis the strategies that may be chosen."""
    types, params, marks = body.types(), {p.name for p in body.params}, followed.marks[body.name]
    ways = Ways(options.context, options.split_weights, options.sequence_parallel)
    found: list[list[list[Strategy]]] = []
    for e in body.eqns:
        ins = [types[i] if i else None for i in e.ins]
        each: list[list[Strategy]] = []
        for axis in mesh.axes:
            every = strategies(e, ins, axis, sizes, own)
            pin = options.pins.get(f"{body.name}.{e.path}", {}).get(axis.name)
            chosen = allowed(e, every, axis, marks, params, ways)
            each.append([s for s in every if s.name == pin] if pin else chosen)
        found.append(each)
    return found


def _problem(
    body: Body, each: Sequence[Sequence[Sequence[Strategy]]], machine: Machine, sizes: Mapping[str, int]
) -> Problem:
    types = body.types()
    domains = tuple(
        joint(e, [types[i] if i else None for i in e.ins], per_axis, machine, sizes)
        for e, per_axis in zip(body.eqns, each, strict=True)
    )
    for e, found, per_axis in zip(body.eqns, domains, each, strict=True):
        if not found:
            raise no_way(e, machine.mesh, per_axis)
    return Problem(body, machine, sizes, domains)


def _rules(mesh: Mesh, options: Options) -> Iterator[tuple[Rule, ...]]:
    """Every way to lay values between calls on the free axes."""
    every: list[Rule] = [(), ("sequence",), ("batch",)]
    if options.sequence_parallel is not None:
        every = [("sequence",)] if options.sequence_parallel else [()]
    tensor: list[Rule] = [r for r in every if r != ("batch",)]
    return itertools.product(
        *(([()] if a.role != "free" else tensor if a.name in options.split_weights else every) for a in mesh.axes)
    )


def _solve_all(
    program: Program, problems: Mapping[str, Problem], between: Sequence[Group], layouts: Sequence[Layout],
    machine: Machine, sizes: Mapping[str, int],
) -> tuple[float, dict[str, Solved]] | None:  # fmt: skip
    """Each body once for the layouts between calls; the cost counts its calls."""
    at = {(s.body, s.name): layout for g, layout in zip(between, layouts, strict=True) for s in g.slots}
    given = {(s.body, s.name) for g in between if set(g.values) & set(program.inputs) for s in g.slots}
    times = Counter(c.body for c in program.calls)
    total, found = 0.0, dict[str, Solved]()
    for name, p in problems.items():
        ins = [at[name, v.name] for v in p.body.ins]
        outs = [at[name, o] for o in p.body.outs]
        plain = frozenset(v.name for v in p.body.ins if (name, v.name) in given)
        one = solve(p, ins, outs, lambda t, use: price_of(t, use, machine, sizes), plain)
        if one is None:
            return None
        found[name] = one
        total += times[name] * one.seconds
    return total, found
