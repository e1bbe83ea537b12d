"""Why a step or a parameter lies where it does: its strategies, what they cost, and what the others would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from specc.compiler.ops.row import Op
from specc.compiler.placement.boundary import groups
from specc.compiler.placement.cost import Machine, edge_cost, work_cost
from specc.compiler.placement.options import DEFAULTS, Options
from specc.compiler.placement.params import Stage, shared, ways
from specc.compiler.placement.place import problem_of
from specc.compiler.placement.placed import Placed, PlacedBody, PlacedEqn
from specc.compiler.placement.problem import Choice
from specc.compiler.placement.refuse import unknown_path
from specc.compiler.placement.roles import follow
from specc.compiler.placement.search import Task
from specc.compiler.placement.tables import solve
from specc.compiler.placement.types import show
from specc.compiler.units import size

MAX_OTHERS = 8


def explain(placed: Placed, path: str, options: Options = DEFAULTS, own: Mapping[str, Op] | None = None) -> str:
    """`path` is a parameter's (layers.0.attention.q.weight) or a step's (layers.attention.q)."""
    if path in placed.params:
        return "\n".join(_parameter(placed, path, options))
    steps = {f"{b.body.name}.{e.eqn.path}": (b, k) for b in placed.bodies.values() for k, e in enumerate(b.eqns)}
    if path not in steps:
        raise unknown_path(path, [*steps, *(placed.params if path.endswith(("weight", "bias")) else ())])
    body, k = steps[path]
    return "\n".join([path, *_step(placed, body, k, options), *_others(placed, body, k, options, own)])


def stage_of(placed: Placed) -> Stage:
    """The ZeRO stage that a placement has."""
    if placed.gather_each_use or placed.reduce_each_microbatch:
        return Stage(3 if placed.gather_each_use else 2, mixed=True)
    batch = [a for a, axis in enumerate(placed.mesh.axes) if axis.role == "batch"]
    return Stage(int(any(at[a].kind == "S" for at in placed.params.values() for a in batch)), mixed=True)


def _machine(placed: Placed, options: Options) -> Machine:
    return Machine(placed.mesh, options.device, options.links, options.itemsize)


def _parameter(placed: Placed, path: str, options: Options) -> Iterator[str]:
    machine, mesh, param = _machine(placed, options), placed.mesh, placed.program.params[path]
    group = next(g for g in shared(placed.program) if path in g.paths)
    uses = [placed.bodies[b].params[i] for b, i in group.uses]
    yield f"{path}: {param.type.shown()}, kept {show(placed.params[path], mesh, param.type)}"
    for (body, _), use in zip(group.uses, uses, strict=True):
        yield f"  used in {body} as {show(use, mesh, param.type)}"
    for way in ways(param, uses, stage_of(placed), machine, placed.sizes, tight=True):
        mark = "*" if way.kept == placed.params[path] else " "
        cost = f"{size(way.nbytes)} a rank, {_time(way.seconds)} a step to bring to its uses"
        yield f"  {mark} kept {show(way.kept, mesh, param.type)}: {cost}"


def _step(placed: Placed, body: PlacedBody, k: int, options: Options) -> Iterator[str]:
    """The step's choice, the moves of its operands, and its work."""
    machine, e = _machine(placed, options), body.eqns[k]
    types, layouts, mesh = body.body.types(), body.layouts(), placed.mesh
    yield f"  {e.eqn.op} [{_named(e.strategies, placed)}]"
    for i, name in enumerate(e.eqn.ins):
        at = e.takes(i)
        if name is not None and at is not None:
            seconds = edge_cost(types[name], layouts[name], at, machine, placed.sizes)
            moved = "" if layouts[name] == at else f", moved from {show(layouts[name], mesh, types[name])}"
            yield f"  takes {types[name]} {show(at, mesh, types[name])}{moved}: {_time(seconds)}"
    for j, t in enumerate(e.eqn.types):
        yield f"  gives {t} {show(e.gives(j), mesh, t)}"
    ins = [types[n] if n else None for n in e.eqn.ins]
    yield f"  works {_time(work_cost(e.eqn, ins, e.strategies, machine, placed.sizes))}"


def _others(placed: Placed, body: PlacedBody, k: int, options: Options, own: Mapping[str, Op] | None) -> Iterator[str]:
    """What the body would cost with other choices here, all else as good as can be."""
    problem = problem_of(placed.program, body.body, placed.mesh, placed.sizes, options, own)
    between = tuple(groups(placed.program, follow(placed.program, placed.sizes, own)))
    task = Task(placed.program, problem.machine, placed.sizes, options, {body.body.name: problem}, between)
    price, inputs = task.price(stage_of(placed), 0.0), task.inputs[body.body.name]
    found: list[tuple[float, Choice]] = []
    for choice in problem.domains[k]:
        domains = (*problem.domains[:k], (choice,), *problem.domains[k + 1 :])
        one = solve(replace(problem, domains=domains), body.ins, body.outs, price, inputs)
        if one is not None:
            found.append((one.total, choice))
    best = min((t for t, _ in found), default=0.0)
    yield f"  instead, for each call of {body.body.name} ({len(found)} ways):"
    for total, choice in sorted(found, key=lambda f: f[0])[:MAX_OTHERS]:
        mark = "*" if choice == body.eqns[k].strategies else " "
        ins = [
            show(at, placed.mesh)
            for i in range(len(choice[0].ins))
            if (at := PlacedEqn(body.body.eqns[k], choice).takes(i))
        ]
        yield f"  {mark} [{_named(choice, placed)}] {', '.join(ins)}: +{_time(total - best)}"


def _named(choice: Choice, placed: Placed) -> str:
    return " ".join(f"{a.name}={s.name}" for a, s in zip(placed.mesh.axes, choice, strict=True))


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-2 else f"{seconds * 1e3:.1f} ms"
