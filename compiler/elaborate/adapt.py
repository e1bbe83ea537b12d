"""Low-rank adapters (LoRA, arXiv:2106.09685) as equations beside a linear step: y = x W + scale (x A) B."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from specc.compiler.elaborate.param import new_param
from specc.compiler.elaborate.scope import Context, Frame, Path
from specc.compiler.elaborate.tie import followed
from specc.compiler.elaborate.unit import Locate, Value
from specc.compiler.program import Adapter, Body, Init, Param, Program
from specc.compiler.rules import Binding
from specc.compiler.types import TensorType, number_dim
from specc.spec.errors import Diagnostic, pattern_hint
from specc.spec.expr import parse
from specc.spec.model import Lora

A, B, WEIGHT = ".lora_a.weight", ".lora_b.weight", ".weight"
KEY = "key"  # the input that numbers samples
REFUSED = "S117"
PRODUCTS = ("linear", "grouped_linear", "stack")  # ops that take such a weight


def with_adapter(
    frame: Frame, op: str, ins: Sequence[Value], y: Value, binding: Binding, path: str, at: Path
) -> Value:  # fmt: skip
    """What a linear step gives, y = x W, with what an adapter adds to it, if its weight has one."""
    lora = frame.ctx.spec.lora
    if lora is None or not is_adapted(frame, lora, path + WEIGHT):
        return y
    return added(frame, lora, op, ins, y, binding, factors(frame, lora, binding, path, at), path, at)


def with_adapters(
    frame: Frame, ins: Sequence[Value], y: Value, entries: Sequence[str], binding: Binding, path: str, at: Path
) -> Value:  # fmt: skip
    """The same of a step whose tokens have weights by an attribute (`per:`): each of these has its own adapter."""
    lora = frame.ctx.spec.lora
    hit = [e for e in entries if lora and is_adapted(frame, lora, f"{path}.{e}{WEIGHT}")]
    if lora is None or not hit:
        return y
    if other := [e for e in entries if e not in hit]:
        text = f"'{path}.{hit[0]}' has an adapter and '{path}.{other[0]}' has none, and one product takes both"
        frame.fail(REFUSED, text, (*at, "per"), "let the patterns of 'lora' match all of them or none")
    pairs = [factors(frame, lora, binding, f"{path}.{e}", at) for e in entries]
    groups, stacked = number_dim(len(entries)), list[str]()
    for names in zip(*pairs, strict=True):
        dims = frame.unit.params[names[0]].type.dims
        stacked += [frame.emit("stack", list(names), (TensorType((groups, *dims)),), {"dim": groups}, path)[0].name]
    return added(frame, lora, "routed_linear", ins, y, binding, (stacked[0], stacked[1]), path, at)


def is_adapted(frame: Frame, lora: Lora, local: str) -> bool:
    """Whether a pattern matches the weight, by its path in the whole model."""
    path, is_whole = followed(frame, local)
    return matches(lora, path if is_whole or frame.own_unit is None else f"{frame.own_unit.whole}.{path}")


def matches(lora: Lora, path: str) -> bool:
    return any(fnmatchcase(path, p) for p in lora.match)


def alike(lora: Lora | None, body: Body, here: str, there: str) -> bool:
    """Whether calls of a body at two paths have adapters at the same weights."""
    locals_ = [p.local for p in body.params if not p.tied]
    return lora is None or all(matches(lora, f"{here}.{p}") == matches(lora, f"{there}.{p}") for p in locals_)


def factors(frame: Frame, lora: Lora, binding: Binding, path: str, at: Path) -> tuple[str, str]:
    """The parameters A, drawn uniformly as PEFT does, and B, zeros: training begins with the model as it was."""
    groups, ins, outs, rank = binding.get("n", ()), binding["i"], binding["o"], number_dim(lora.rank)
    bound = math.prod(d.size or 1 for d in ins) ** -0.5
    a = new_param(
        frame, path + A, TensorType((*groups, *ins, rank)), Init("uniform", {"low": -bound, "high": bound}), at
    )
    return a, new_param(frame, path + B, TensorType((*groups, rank, *outs)), Init("zeros"), at)


def added(
    frame: Frame, lora: Lora, op: str, ins: Sequence[Value], y: Value, binding: Binding, pair: tuple[str, str],
    path: str, at: Path,
) -> Value:  # fmt: skip
    """y + scale (x A) B."""
    x, beside, mark = ins[0], [v.name for v in ins[1:]], frame.locate(at)
    if lora.dropout:
        x = dropped(frame, lora, x, path, at)
    low_type = TensorType((*x.type.dims[: len(x.type.dims) - len(binding["i"])], number_dim(lora.rank)))
    low = frame.emit(op, [x.name, *beside, pair[0]], (low_type,), {}, path + A.removesuffix(WEIGHT), mark)[0]
    high = frame.emit(op, [low.name, *beside, pair[1]], (y.type,), {}, path + B.removesuffix(WEIGHT), mark)[0]
    formula = {"formula": parse(f"a + {lora.scale!r} * b")}
    return replace(frame.emit("expr", [y.name, high.name], (y.type,), formula, path, mark)[0], by=y.by)


def dropped(frame: Frame, lora: Lora, x: Value, path: str, at: Path) -> Value:
    """x with dropout by the samples' key."""
    key = frame.captured(KEY, frame.ctx.model.inputs[KEY])
    if x.type.dims[:1] != key.type.dims:
        text = f"the input of '{path}' is {x.type.shown()}: its first dim is not {key.type.shown()}, that of samples"
        frame.fail(REFUSED, text, at, "'lora: {dropout: 0}', or patterns that leave this weight out")
    return frame.emit("dropout", [x.name, key.name], (x.type,), {"p": lora.dropout}, path, frame.locate(at))[0]


def declare_key(frame: Frame) -> None:
    """The input that dropout of adapters needs, int[B], if the model does not declare it."""
    lora, inputs = frame.ctx.spec.lora, frame.ctx.model.inputs
    if lora is None or not lora.dropout or KEY in inputs:
        return
    batch = next((t.dims[:1] for t in inputs.values() if t.dims), ())
    inputs[KEY] = TensorType(batch, "int")


def adapters_of(lora: Lora | None, params: Mapping[str, Param]) -> tuple[Adapter, ...]:
    """The adapters among the parameters."""
    found: list[Adapter] = []
    for path in params if lora else ():
        stem = path.removesuffix(A)
        if lora is None or stem == path or not {stem + WEIGHT, stem + B} <= params.keys():
            continue
        whole, a, b = (len(params[stem + end].type.dims) for end in (WEIGHT, A, B))
        groups = a + b - whole - 2  # of [groups ins outs], [groups ins rank] and [groups rank outs]
        found.append(Adapter(stem + WEIGHT, path, stem + B, lora.scale, a - 1 - groups, groups))
    return tuple(found)


def adapter_mistakes(ctx: Context, program: Program, locate: Locate, at: Path) -> Iterator[Diagnostic]:
    """Patterns that match no linear weight, and weights that a step shares which would not have the adapter."""
    lora = ctx.spec.lora
    adapted = [a.weight for a in program.adapters]
    for i, pattern in enumerate(lora.match if lora else ()):
        mark = locate((*at, "lora", "match", i))
        if not any(fnmatchcase(p, pattern) for p in adapted):
            other = next((p for p in program.params if fnmatchcase(p, pattern)), None)
            known = linear_weights(program)
            hint = f"linear weights are {', '.join(known[:4])} ..." if other else pattern_hint(pattern, known)
            more = f"; '{other}' is no weight of a `linear` of its own" if other else ""
            yield Diagnostic("S108", f"no linear weight matches '{pattern}'{more}", mark, hint)
        elif both := next((p for p in adapted if fnmatchcase(p, pattern) and p in ctx.shared), None):
            text = f"'{both}' is shared with another step by 'tie', which would not have its adapter"
            yield Diagnostic(REFUSED, text, mark, "patterns that leave it out")


def linear_weights(program: Program) -> list[str]:
    """The weights that can have adapters."""
    found: dict[str, None] = {}
    for call in program.calls:
        body = program.bodies[call.body]
        paths = {p.name: path for p, path in zip(body.params, call.params, strict=True)}
        used = (paths.get(i or "") for e in body.eqns if e.op in PRODUCTS for i in e.ins)
        found |= dict.fromkeys(p for p in used if p and p.endswith(WEIGHT) and not p.endswith((A, B)))
    return list(found)
