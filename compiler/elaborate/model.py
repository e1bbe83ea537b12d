"""Elaboration of a whole model: dims, inputs, steps, outputs, loss, and which parameters train."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from specc.compiler.elaborate.adapt import adapter_mistakes, adapters_of, declare_key
from specc.compiler.elaborate.block import run_steps
from specc.compiler.elaborate.library import library_block, library_names
from specc.compiler.elaborate.preference import PairLoss, attend, check_found
from specc.compiler.elaborate.scope import Context, Frame, Path, Poisoned, StepFailed, gather
from specc.compiler.elaborate.step import formula, formula_values
from specc.compiler.elaborate.unit import Locate, Model, Value, finish
from specc.compiler.masks import OBJECTIVES
from specc.compiler.ops import OPS
from specc.compiler.ops.pointwise import broadcast
from specc.compiler.ops.row import Op, OpError
from specc.compiler.ops.user import user_ops
from specc.compiler.program import Param, Program, check
from specc.compiler.types import Dim, DType, TensorType
from specc.spec.errors import Diagnostic, SpecError, in_order, pattern_hint
from specc.spec.expr import Expr, ExprError, parse
from specc.spec.model import ModelSpec

if TYPE_CHECKING:
    from specc.spec.objective import Preference
    from specc.spec.spec import Spec
    from specc.spec.stage import StageSpec

TYPE = re.compile(r"(float|int|bool)\[([^\[\]]*)\]")


def elaborate(
    spec: Spec, model: str | None = None, objective: str | None = None, asked: Preference | None = None
) -> Program:
    """The Program of a spec's model (of the one called `model` if it has several).

    `asked` is the loss of pairs of answers that stands for its cross-entropy."""
    name, section, at = spec.model_section(model)
    own = user_ops(spec, OPS, library_names()) if spec.ops else None
    return elaborate_model(section, name, spec.mark, at, objective, own, asked)


def elaborate_stage(spec: Spec, stage: StageSpec) -> Program:
    """The Program of a stage's model under its objective."""
    return elaborate(spec, stage.model, stage.objective, stage.asked)


def elaborate_model(
    spec: ModelSpec, name: str, locate: Locate = lambda _: None, at: Path = ("model",), objective: str | None = None,
    own_ops: Mapping[str, Op] | None = None, asked: Preference | None = None,
) -> Program:  # fmt: skip
    """Raises SpecError with all independent mistakes."""
    masks = {"objective": OBJECTIVES[objective or "causal_lm"], **spec.masks}
    pairs = PairLoss(asked) if asked else None
    ctx = Context(spec, Model(), {**OPS, **(own_ops or {})}, masks, library_block, library_names)
    ctx.instead = {"cross_entropy": pairs, "attend": attend} if pairs else {}
    frame = Frame(ctx, locate, at, args=dict(spec.numbers), unknown=ctx.unknown)
    declare_dims(frame)
    declare_inputs(frame)
    run_steps(frame, spec.steps, (*at, "steps"))
    outputs: dict[str, str] = {}
    loss: list[str] = []
    parameters_are_known = not ctx.diagnostics
    guarded(ctx, lambda: find_outputs(frame, outputs))
    if pairs and parameters_are_known:
        guarded(ctx, lambda: check_found(frame, pairs, outputs))
    watched = pairs.watched if pairs else {}
    guarded(ctx, lambda: loss.extend(find_loss(frame)))
    if parameters_are_known:
        guarded(ctx, lambda: set_trainable(frame))
    stop_on_mistakes(ctx)
    outputs |= watched
    bodies, calls = finish(ctx.model, [*outputs.values(), *loss])
    inputs, adapters = dict(ctx.model.inputs), adapters_of(spec.lora, ctx.model.params)
    end = loss[0] if loss else None
    program = check(Program(name, inputs, ctx.model.params, bodies, calls, outputs, end, adapters, tuple(watched)))
    ctx.diagnostics += adapter_mistakes(ctx, program, locate, at)
    stop_on_mistakes(ctx)
    return program


def sizes_of(spec: ModelSpec) -> dict[str, int]:
    """The sizes of a model's dims."""
    frame = Frame(Context(spec, Model(), OPS, {}, library_block, library_names), lambda _: None, ("model",))
    declare_dims(frame)
    stop_on_mistakes(frame.ctx)
    return {n: d.size for n, d in frame.dims.items() if d.size is not None}


def guarded(ctx: Context, work: Callable[[], None]) -> bool:
    """Do a part of the model; whether it went well."""
    try:
        work()
        return True
    except Poisoned:
        pass
    except StepFailed as e:
        ctx.diagnostics += e.diagnostics
    return False


def stop_on_mistakes(ctx: Context) -> None:
    if ctx.diagnostics:
        raise SpecError(*in_order(ctx.diagnostics))


def declare_dims(frame: Frame) -> None:
    """Dims may be expressions over other dims, in any order."""
    waiting = dict(frame.ctx.spec.dims)
    while waiting:
        ready = [n for n, raw in waiting.items() if not set(_dim_names(raw)) & set(waiting)]
        if not ready:
            circle = ", ".join(f"'{n}'" for n in waiting)
            mark = frame.locate((*frame.at, "dims", next(iter(waiting))))
            frame.ctx.diagnostics.append(Diagnostic("S112", f"these dims are defined by each other: {circle}", mark))
            frame.unknown |= set(waiting)
            return
        for name in ready:
            if not guarded(frame.ctx, partial(declare_dim, frame, name, waiting.pop(name))):
                frame.unknown.add(name)


def _dim_names(raw: int | str | list[int | str]) -> list[str]:
    try:
        return [n for entry in (raw if isinstance(raw, list) else [raw]) for n in parse(entry).names()]
    except ExprError:
        return []


def declare_dim(frame: Frame, name: str, raw: int | str | list[int | str]) -> None:
    here = (*frame.at, "dims", name)
    if not name.isidentifier() or not name.isascii():
        frame.fail("S110", f"'{name}' is not a name for a dim", here)
    if isinstance(raw, list):
        declare_list(frame, name, raw, here)
        return
    value = frame.dim(raw, here)
    frame.dims[name] = value if value.size is None else Dim(name, value.size)


def declare_list(frame: Frame, name: str, raw: list[int | str], at: Path) -> None:
    """Sizes of several levels: `widths: [128, 256, 512]`."""
    sizes = [frame.dim(entry, (*at, i)).size for i, entry in enumerate(raw)]
    if not sizes or None in sizes:
        frame.fail("S110", f"the list '{name}' holds one known size or more", at)
    frame.ctx.lists[name] = [s for s in sizes if s is not None]


def declare_inputs(frame: Frame) -> None:
    spec = frame.ctx.spec
    for name, text in spec.inputs.items():
        if not guarded(frame.ctx, partial(declare_input, frame, name, text)):
            frame.values[name] = None
    for name, attribute in spec.attributes.items():
        text, role = (attribute, name) if isinstance(attribute, str) else (attribute.type, attribute.as_ or name)
        if not guarded(frame.ctx, partial(declare_attribute, frame, name, text, role)):
            frame.ctx.unknown_attributes.add(role)
            frame.unknown.add(name)
    declare_key(frame)
    frame.ctx.model.types |= frame.ctx.model.inputs
    frame.ctx.model_dims = dict(frame.dims)
    frame.values["_"] = next((v for n, v in frame.values.items() if n in spec.inputs), None)


def declare_input(frame: Frame, name: str, text: str) -> None:
    here = (*frame.at, "inputs", name)
    type_ = parse_type(frame, text, here)
    frame.values[name] = Value(name, type_, f"input {name}", frame.locate(here))
    frame.ctx.model.inputs[name] = type_


def declare_attribute(frame: Frame, name: str, text: str, role: str) -> None:
    here = (*frame.at, "attributes", name)
    type_ = parse_type(frame, text, here)
    if name in frame.ctx.spec.inputs:
        frame.fail("S109", f"'{name}' is an input and an attribute", here)
    if type_.dtype != "int" or not type_.dims:
        frame.fail("S204", f"an attribute is int[... tokens], got {type_}", here)
    frame.ctx.attributes.setdefault(role, []).append((name, type_))
    frame.ctx.model.inputs[name] = type_


def parse_type(frame: Frame, text: str, at: Path) -> TensorType:
    """`int[B S]`; a dim that is not declared under `dims:` is open: the stage gives its size."""
    found = TYPE.fullmatch(text.strip())
    if not found:
        frame.fail("S110", f"'{text}' is not a type; write float[B S D], int[B S] or bool[B S]", at)
    dtype: DType = {"float": "float", "int": "int", "bool": "bool"}[found[1]]  # type: ignore[assignment]
    dims: list[Dim] = []
    for word in found[2].split():
        if word not in frame.dims and word.isidentifier():
            frame.dims[word] = Dim(word)
        dims.append(frame.dim(int(word) if word.isdigit() else word, at))
    if len({d.name for d in dims}) < len(dims):
        frame.fail("S110", f"a dim stands twice in '{text}'", at, another_name(dims, found[2].split()))
    return TensorType(tuple(dims), dtype)


def another_name(dims: list[Dim], words: list[str]) -> str:
    """What to write where a dim stands twice; two numbers that are the same need names."""
    names = [d.name for d in dims]
    if not any(names.count(n) > 1 and n.isdigit() for n in names):
        return "give one of them another name"
    free = iter(n for n in ("Y", "X", "Z", *(f"N{i}" for i in range(len(names)))) if n not in words)
    called = {i: next(free) for i, n in enumerate(names) if names.count(n) > 1 and n.isdigit()}
    sizes = ", ".join(f"{name}: {names[i]}" for i, name in called.items())
    return f"give them names: 'dims: {{{sizes}}}' and [{' '.join(called.get(i, w) for i, w in enumerate(words))}]"


def find_outputs(frame: Frame, found: dict[str, str]) -> None:
    """The values that the model gives, by name; without `outputs:` the last one."""
    wanted = frame.ctx.spec.outputs
    if wanted == "_":
        last = frame.values.get("_")
        found |= {"out": last.name} if last is not None and last.type.dims else {}
        return
    assert isinstance(wanted, dict)

    def one(name: str, value: str) -> None:
        found[name] = frame.value(value, (*frame.at, "outputs", name)).name

    gather(partial(one, *item) for item in wanted.items())


def find_loss(frame: Frame) -> list[str]:
    """The loss: a formula over values, a scalar."""
    text = frame.ctx.spec.loss
    if text is None:
        return []
    here = (*frame.at, "loss")
    tree: Expr = formula(frame, frame.expr(text, here), here)
    values = formula_values(frame, tree, here)
    if not values:
        frame.fail("S207", f"the loss is a number of the model's values, and `{text}` has none", here, "name a value")
    if tree.op == "name":
        out = values[0]
    else:
        try:
            dims = broadcast([v.type for v in values])
        except OpError as e:
            frame.fail(e.code, str(e), here)
        out = frame.emit("expr", [v.name for v in values], (TensorType(dims),), {"formula": tree}, "loss")[0]
    if out.type.dims or out.type.dtype != "float":
        frame.fail("S207", f"the loss is a single number, got {out.type} from `{out.by}`", here, "take its 'mean'")
    return [out.name]


def set_trainable(frame: Frame) -> None:
    """`freeze:` and `train:` patterns over parameter paths; each must match something. Beside adapters all is frozen
    that no pattern says to train."""
    spec, params = frame.ctx.spec, frame.ctx.model.params
    frozen: dict[str, bool] = dict.fromkeys(params, bool(spec.lora or (spec.train and not spec.freeze)))
    frozen |= {p: False for a in adapters_of(spec.lora, params) for p in (a.a, a.b)}
    for key, patterns in (("freeze", spec.freeze), ("train", spec.train)):
        for i, pattern in enumerate(patterns):
            hit = [p for p in params if fnmatchcase(p, pattern)]
            if not hit:
                hint = pattern_hint(pattern, params)
                frame.ctx.diagnostics.append(
                    Diagnostic("S108", f"no parameter matches '{pattern}'", frame.locate((*frame.at, key, i)), hint)
                )
            frozen |= dict.fromkeys(hit, key == "freeze")
    frame.ctx.model.params.update({n: replace(p, trainable=not frozen[n]) for n, p in params.items()})


def trainable(params: Mapping[str, Param]) -> list[str]:
    return [n for n, p in params.items() if p.trainable]
