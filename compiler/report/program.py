"""From a Program to the data of its architecture card: equations grouped by their paths, with parameters and FLOPs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.cost import eqn_cost, program_cost
from specc.compiler.program import Body, Eqn, Program
from specc.compiler.report.data import Block, Model, Step, Value
from specc.compiler.types import TensorType


@dataclass(frozen=True)
class _Context:
    """What the steps of a body need: types and uses of values, trained share of parameters, sizes."""

    types: Mapping[str, TensorType]
    users: Mapping[str, Sequence[int]]  # value -> numbers of the equations that use it; -1 is the body's result
    params: Mapping[str, tuple[int, int, str]]  # operand -> elements, trained elements, path it is tied to
    sizes: Mapping[str, int]
    tokens: int


def model_data(program: Program, sizes: Mapping[str, int], tokens: int, doc: str = "") -> Model:
    """The card of a program; `sizes` binds its open dims, `tokens` is how many tokens such a batch has."""
    blocks = [_block(program, body, sizes, tokens) for body in program.bodies.values()]
    dims = {d.name: d.size for t in _all_types(program) for d in t.dims if d.is_plain and d.size is not None}
    params = [(p.type.numel({}), p.trainable) for p in program.params.values()]
    return {
        "name": program.name,
        "doc": doc,
        "dims": dims,
        "inputs": [_value(n, t) for n, t in program.inputs.items()],
        "blocks": blocks,
        "params": sum(n for n, _ in params),
        "trained": sum(n for n, is_trained in params if is_trained),
        "flops": program_cost(program, sizes).flops / tokens,
    }


def _all_types(program: Program) -> list[TensorType]:
    return [p.type for p in program.params.values()] + [t for b in program.bodies.values() for t in b.types().values()]


def _block(program: Program, body: Body, sizes: Mapping[str, int], tokens: int) -> Block:
    users: dict[str, list[int]] = {o: [-1] for o in body.outs}
    for k, e in enumerate(body.eqns):
        for i in e.ins:
            if i:
                users.setdefault(i, []).append(k)
    ctx = _Context(body.types(), users, _params(program, body), sizes, tokens)
    steps = _steps(list(enumerate(body.eqns)), 0, ctx)
    return {
        "name": body.name,
        "times": sum(c.body == body.name for c in program.calls),
        "ins": [_value(v.name, v.type, by) for v, by in zip(body.ins, _makers(program, body), strict=True)],
        "outs": [_value(o, ctx.types[o], by) for o, by in zip(body.outs, _names(program, body), strict=True)],
        "params": sum(s["params"] for s in steps),
        "trained": sum(s["trained"] for s in steps),
        "flops": sum(s["flops"] for s in steps),
        "steps": steps,
    }


def _makers(program: Program, body: Body) -> list[str]:
    """For each operand the step or repeat that makes it, or the model's input; empty where the calls differ."""
    made = {n: n for n in program.inputs}
    for c in program.calls:
        paths = {o: e.path for e in program.bodies[c.body].eqns for o in e.outs}
        tiled = sum(other.body == c.body for other in program.calls) > 1
        made |= {
            o: c.body if tiled else paths[inner] for o, inner in zip(c.outs, program.bodies[c.body].outs, strict=True)
        }
    calls = [c for c in program.calls if c.body == body.name]
    found = [{made[c.ins[k]] for c in calls} for k in range(len(body.ins))]
    return [makers.pop() if len(makers) == 1 else "" for makers in found]


def _names(program: Program, body: Body) -> list[str]:
    """For each result the name that it has as an output of the model."""
    last = next(c for c in reversed(program.calls) if c.body == body.name)
    names = {v: n for n, v in program.outputs.items()} | ({program.loss: "loss"} if program.loss else {})
    return [names.get(o, "") for o in last.outs]


def _params(program: Program, body: Body) -> dict[str, tuple[int, int, str]]:
    """Elements of each parameter operand, and how many of them train, as a mean over the calls. What an earlier body
    has too is tied to it."""
    calls = [c for c in program.calls if c.body == body.name]
    bodies = list(dict.fromkeys(c.body for c in program.calls))
    before = {p for c in program.calls for p in c.params if c.body in bodies[: bodies.index(body.name)]}
    found = {}
    for k, p in enumerate(body.params):
        tied = p.tied or next((c.params[k] for c in calls if c.params[k] in before), "")
        n = 0 if tied else p.type.numel({})
        trained = sum(program.params[c.params[k]].trainable for c in calls)
        found[p.name] = (n, n * trained // max(len(calls), 1), tied)
    return found


def _steps(eqns: list[tuple[int, Eqn]], depth: int, ctx: _Context) -> list[Step]:
    """Neighbouring equations whose paths share their next part become one step with steps inside."""

    def key(numbered: tuple[int, Eqn]) -> tuple[str, int]:
        number, e = numbered
        parts = e.path.split(".")
        return (parts[depth], -1 if len(parts) > depth + 1 else number)

    steps = []
    for (name, number), group in itertools.groupby(eqns, key=key):
        members = list(group)
        if number >= 0 or len(members) == 1:
            steps.append(_leaf(*members[0], depth, ctx))
        else:
            steps.append(_group(name, members, depth, ctx))
    return steps


def _leaf(number: int, e: Eqn, depth: int, ctx: _Context) -> Step:
    name = ".".join(e.path.split(".")[depth:])
    used = [i for i in dict.fromkeys(e.ins) if i]
    tied = next((ctx.params[i][2] for i in used if i in ctx.params and ctx.params[i][2]), "")
    formula = str(e.attrs["formula"]) if "formula" in e.attrs else ""
    owned = [ctx.params[i] for i in used if i in ctx.params and ctx.users[i][0] == number]  # by its first use
    cost = eqn_cost(e, [ctx.types[i] if i else None for i in e.ins], ctx.sizes, 4)
    return {
        "name": formula if formula and name == e.op else name,
        "op": e.op,
        "detail": f"tied to {tied}" if tied else (formula if formula and name != e.op else ""),
        "ins": [i for i in used if i not in ctx.params],
        "outs": [_value(o, t) for o, t in zip(e.outs, e.types, strict=True)],
        "params": sum(n for n, _, _ in owned),
        "trained": sum(n for _, n, _ in owned),
        "flops": cost.flops / ctx.tokens,
        "steps": [],
    }


def _group(name: str, members: list[tuple[int, Eqn]], depth: int, ctx: _Context) -> Step:
    inner = _steps(members, depth + 1, ctx)
    numbers = {number for number, _ in members}
    made = {o: t for _, e in members for o, t in zip(e.outs, e.types, strict=True)}
    used = dict.fromkeys(i for s in inner for i in s["ins"] if i not in made)
    leaves = [o for o in made if any(u not in numbers for u in ctx.users.get(o, ()))]
    return {
        "name": name,
        "op": name,
        "detail": "",
        "ins": list(used),
        "outs": [_value(o, made[o]) for o in leaves],
        "params": sum(s["params"] for s in inner),
        "trained": sum(s["trained"] for s in inner),
        "flops": sum(s["flops"] for s in inner),
        "steps": inner,
    }


def _value(name: str, t: TensorType, by: str = "") -> Value:
    return {"name": name, "dims": " ".join(d.name for d in t.dims), "dtype": t.dtype, "by": by}
