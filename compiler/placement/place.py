"""From a Program to a Placed: axes' roles, layouts between calls, the solver's choices in bodies, kept parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from specc.compiler.ops.row import Op
from specc.compiler.placement.boundary import Rule, groups, lay, partial_outs
from specc.compiler.placement.cost import Machine
from specc.compiler.placement.options import DEFAULTS, Options
from specc.compiler.placement.placed import Placed, Strategy
from specc.compiler.placement.problem import Problem, joint
from specc.compiler.placement.refuse import check_axes, check_pins, no_way
from specc.compiler.placement.roles import Followed, Ways, allowed, context_of, follow
from specc.compiler.placement.search import Plan, Task, search
from specc.compiler.placement.strategies import strategies
from specc.compiler.placement.types import Mesh
from specc.compiler.program import Body, Program


def place(
    program: Program, mesh: Mesh, sizes: Mapping[str, int], options: Options = DEFAULTS,
    own: Mapping[str, Op] | None = None,
) -> Placed:  # fmt: skip
    """The cheapest placement that the axes' roles and the options allow. Raises SpecError where there is none."""
    plan = plan_of(program, mesh, sizes, options, own)
    bodies = {name: s.placed for name, s in plan.bodies.items()}
    return Placed(
        program, mesh, dict(sizes), bodies, {n: plan.values[n] for n in program.inputs}, plan.kept.layouts,
        gather_each_use=plan.zero == 3, reduce_each_microbatch=plan.zero >= 2,
    )  # fmt: skip


def plan_of(
    program: Program, mesh: Mesh, sizes: Mapping[str, int], options: Options = DEFAULTS,
    own: Mapping[str, Op] | None = None,
) -> Plan:  # fmt: skip
    """The placement with what it costs."""
    machine = Machine(mesh, options.device, options.links, options.itemsize)
    followed = follow(program, sizes, own)
    check_axes(program, mesh, sizes, followed, options)
    each = {name: _choices(body, mesh, sizes, options, followed, own) for name, body in program.bodies.items()}
    check_pins(program, each, mesh, options)
    between = groups(program, followed)
    sums = partial_outs(program, each)
    problems = {name: _problem(program.bodies[name], each[name], machine, sizes) for name in program.bodies}
    starts = [
        [lay(g, mesh, rule, program, sizes, options.context, sums) for g in between] for rule in rules(mesh, options)
    ]
    return search(Task(program, machine, sizes, options, problems, tuple(between)), starts)


def problem_of(
    program: Program, body: Body, mesh: Mesh, sizes: Mapping[str, int], options: Options,
    own: Mapping[str, Op] | None = None,
) -> Problem:  # fmt: skip
    """A body's problem: what each equation may choose."""
    machine = Machine(mesh, options.device, options.links, options.itemsize)
    return _problem(body, _choices(body, mesh, sizes, options, follow(program, sizes, own), own), machine, sizes)


def _choices(
    body: Body, mesh: Mesh, sizes: Mapping[str, int], options: Options, followed: Followed,
    own: Mapping[str, Op] | None,
) -> list[list[list[Strategy]]]:  # fmt: skip
    """For each equation and axis the strategies that may be chosen."""
    types, params, marks = body.types(), {p.name for p in body.params}, followed.marks[body.name]
    ways = [
        Ways(context_of(a, mesh, options.context), options.split_weights, options.sequence_parallel) for a in mesh.axes
    ]
    found: list[list[list[Strategy]]] = []
    for e in body.eqns:
        ins = [types[i] if i else None for i in e.ins]
        each: list[list[Strategy]] = []
        for axis, way in zip(mesh.axes, ways, strict=True):
            every = strategies(e, ins, axis, sizes, own)
            pin = options.pins.get(f"{body.name}.{e.path}", {}).get(axis.name)
            chosen = allowed(e, every, axis, marks, params, way)
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


def rules(mesh: Mesh, options: Options) -> Iterator[tuple[Rule, ...]]:
    """Every way to lay values between calls on the free axes."""
    every: list[Rule] = [(), ("sequence",), ("batch",)]
    if options.sequence_parallel is not None:
        every = [("sequence",)] if options.sequence_parallel else [()]
    tensor: list[Rule] = [r for r in every if r != ("batch",)]
    return itertools.product(
        *(([()] if a.role != "free" else tensor if a.name in options.split_weights else every) for a in mesh.axes)
    )


__all__ = ["Options", "place", "plan_of", "problem_of"]
