"""One step that is an op: resolve its parameters and operands, match its rule, and emit equations."""

from __future__ import annotations

from typing import Any

from specc.compiler.elaborate import ambient
from specc.compiler.elaborate.adapt import with_adapter, with_adapters
from specc.compiler.elaborate.args import init_of, op_args, plain_attrs
from specc.compiler.elaborate.mismatch import mismatch
from specc.compiler.elaborate.param import new_param
from specc.compiler.elaborate.scope import Frame, Path, StepFailed
from specc.compiler.elaborate.tie import tied_weight
from specc.compiler.elaborate.unit import Value
from specc.compiler.masks import implies_causal
from specc.compiler.ops import OPS
from specc.compiler.ops.row import Applied, Op, OpError, Weight
from specc.compiler.rules import Binding, Mismatch, Pattern, build, match
from specc.compiler.types import Dim, TensorType
from specc.spec.expr import Expr
from specc.spec.model import Step

MAX_RELATED = 4


def apply_op(frame: Frame, op: Op, step: Step, at: Path) -> list[Value]:
    """Elaborate `- op: {...}`; the results in order."""
    here = (*at, step.op)
    args = op_args(frame, op, step.args, here)
    if op.name == "expr":
        args["formula"] = formula(frame, args["formula"], here)
        ins: list[Value | None] = list(formula_values(frame, args["formula"], here))
    else:
        ins = operands(frame, op, step, at)
        ins += extra_operands(frame, op, args, ins, here)
    path = frame.prefix + (step.name or op.name)
    return emit_op(frame, op, ins, args, path, here)


def emit_op(frame: Frame, op: Op, ins: list[Value | None], args: dict[str, Any], path: str, at: Path) -> list[Value]:
    """Type the operands, make the weights, infer the results, emit the equation."""
    check_dtypes(frame, op, ins, at)
    binding = bind(frame, op, ins, args, at)
    if args.get("per"):
        return per_token(frame, op, ins, args, binding, path, at)
    weights = [weight(frame, op, w, i, binding, args, path, at) for i, w in enumerate(op.weights)]
    types = infer(frame, op, ins, args, binding, at)
    names = [v.name if v else None for v in ins] + weights
    while names and names[-1] is None:
        names.pop()
    outs = frame.emit(op.name, names, types, plain_attrs(op, args), path, frame.locate(at))
    if op.name in ("linear", "grouped_linear") and not args.get("tie"):
        return [with_adapter(frame, op.name, [v for v in ins if v], outs[0], binding, path, at)]
    return outs


def operands(frame: Frame, op: Op, step: Step, at: Path) -> list[Value | None]:
    """The values that `from:` wires to the op's inputs; the first one is the previous output by default."""
    wiring = step.from_
    spots = [n.rstrip("?") for n in op.inputs]
    here = (*at, "from") if wiring is not None else at
    if op.inputs and op.inputs[0].startswith("*"):
        names = ["_"] if wiring is None else wiring if isinstance(wiring, list) else [str(wiring)]
        return [frame.value(n, here) for n in names]
    if isinstance(wiring, dict):
        strange = [k for k in wiring if k not in spots]
        if strange:
            frame.fail("S105", f"`{op.name}` has no input '{strange[0]}' (it has {', '.join(spots) or 'none'})", here)
        given = [wiring.get(n) for n in spots]
    else:
        listed = [wiring] if isinstance(wiring, str) else list(wiring or (["_"] if spots else []))
        if len(listed) > len(spots):
            frame.fail("S105", f"`{op.name}` takes {len(spots)} inputs, got {len(listed)}", here)
        given = [*listed, *([None] * (len(spots) - len(listed)))]
    from_args = {"mask", "bias", "positions"}
    for name, spot in zip(given, op.inputs, strict=True):
        if name is None and not spot.endswith("?") and spot not in from_args:
            frame.fail("S107", f"`{op.name}` needs its input '{spot}'; say 'from: [{', '.join(spots)}]'", here)
    return [None if n is None else frame.value(n, here) for n in given]


def extra_operands(frame: Frame, op: Op, args: dict[str, Any], ins: list[Value | None], at: Path) -> list[Value | None]:
    """Operands that come from parameters: the mask and bias of attention, the positions of rotary embedding."""
    if op.name == "rope" and ins[0] is not None and ins[1] is None:
        ins[1] = ambient.positions(frame, args["positions"], ins[0].type, (*at, "positions"))
    if op.name == "attend":
        q, k = ins[0], ins[1]
        if args["mask"] is not None and q is not None and k is not None and len(q.type.dims) > 2 < len(k.type.dims):
            here, q_dim, k_dim = (*at, "mask"), q.type.dims[-3], k.type.dims[-3]
            tree = ambient.expanded(frame, str(args["mask"]), here)
            ins[3] = ambient.mask(frame, tree, q_dim, k_dim, here)
            args["causal"] = q_dim == k_dim and implies_causal(tree)
        if args["bias"] is not None:
            ins[4] = frame.value(str(args["bias"]), (*at, "bias"))
    return []


def formula(frame: Frame, e: Expr, at: Path) -> Expr:
    """A formula whose names are all values: numbers are put in, and a block's argument can name a function."""
    if e.op == "name" and e.value not in frame.values and e.value in frame.numbers():
        return Expr("num", frame.numbers()[str(e.value)])
    value = e.value
    if e.op == "call" and isinstance(frame.args.get(str(value)), str):
        value = frame.args[str(value)]
    return Expr(e.op, value, tuple(formula(frame, a, at) for a in e.args))


def formula_values(frame: Frame, e: Expr, at: Path) -> list[Value]:
    return [frame.value(n, at) for n in e.names()]


def check_dtypes(frame: Frame, op: Op, ins: list[Value | None], at: Path) -> None:
    for i, value in enumerate(ins):
        want = op.takes_of(i)
        if value is not None and want not in ("any", value.type.dtype):
            by = f" from `{value.by}`" if value.by else ""
            related = ((value.mark, "made here"),) if value.mark else ()
            frame.fail("S204", f"`{op.name}` takes {want} numbers here, got {value.type}{by}", at, related=related)


def bind(frame: Frame, op: Op, ins: list[Value | None], args: dict[str, Any], at: Path) -> Binding:
    """Letters of the rule: first from parameters, then from the operands' dims."""
    binding: Binding = {}
    for letter, name in op.binds.items():
        dims = args[name]
        if dims is not None:
            binding[letter] = dims if isinstance(dims, tuple) else (dims,)
        elif letter == "i" and ins and ins[0] is not None and ins[0].type.dims:
            binding[letter] = ins[0].type.dims[-1:]
    if op.inputs and op.inputs[0].startswith("*"):
        return binding
    for i, (value, pattern) in enumerate(zip(ins, op.parsed.ins, strict=False)):
        if value is None or (not pattern and op.infer is not None):
            continue
        match_operand(frame, op, i, value, pattern, binding, at)
    return binding


def match_operand(frame: Frame, op: Op, i: int, value: Value, pattern: Pattern, binding: Binding, at: Path) -> None:
    try:
        match(pattern, value.type.dims, binding)
    except Mismatch as e:
        spot = op.inputs[i].rstrip("?") if len(op.inputs) > 1 else ""
        raise StepFailed(mismatch(frame, op.name, e, value, at, spot)) from None


def infer(
    frame: Frame, op: Op, ins: list[Value | None], args: dict[str, Any], binding: Binding, at: Path
) -> tuple[TensorType, ...]:
    applied = Applied(tuple(v.type if v else None for v in ins), args, binding)
    try:
        if op.check is not None:
            op.check(applied)
        if op.infer is not None:
            types = op.infer(applied)
        else:
            types = tuple(TensorType(build(p, binding)) for p in op.parsed.outs)
    except (OpError, Mismatch) as e:
        code, hint, operand = (e.code, e.hint, e.operand) if isinstance(e, OpError) else ("S201", "", None)
        given = ins if operand is None or operand >= len(ins) else [ins[operand]]
        sources = dict.fromkeys((v.mark, f"`{v.by}` makes {v.type.shown()}") for v in given if v and v.mark)
        related = [(mark, text) for mark, text in sources if mark]
        frame.fail(code, f"`{op.name}`: {e}", at, hint, tuple(related[:MAX_RELATED]))
    return tuple(
        TensorType(t.dims, g if op.infer is None or g == "bool" else t.dtype)
        for t, g in zip(types, (*op.gives, *op.gives[-1:] * len(types)), strict=False)
    )


def weight(
    frame: Frame, op: Op, w: Weight, i: int, binding: Binding, args: dict[str, Any], path: str, at: Path
) -> str | None:
    """The parameter operand of one weight, or None if it is switched off."""
    if w.when and not args.get(w.when):
        return None
    pattern = op.parsed.ins[(0 if not op.inputs else len(op.inputs)) + i]
    is_kernel = op.name == "conv" and w.name == "weight"
    dims = conv_weight(binding, args) if is_kernel else build(pattern, binding)
    type_ = TensorType(dims)
    if args.get("tie") and w.name == "weight":
        return tied_weight(frame, str(args["tie"]), type_, (*at, "tie"))
    local = f"{path}.{w.name}" if w.name else path
    init = init_of(frame, args.get("init"), w.name or "weight", w.init, (*at, "init"))
    if init.kind == "sincos" and (len(dims) != 3 or (dims[-1].size or 0) % 4):
        frame.fail("S103", f"'sincos' fills a table [height width 4*n], got {type_}", (*at, "init"))
    return new_param(frame, local, type_, init, at)


def conv_weight(binding: Binding, args: dict[str, Any]) -> tuple[Dim, ...]:
    spatial = len(binding["*"]) if "*" in binding else len(binding[""])
    k = int(args["kernel"])
    return (*binding["o"], *binding["i"], *((Dim(str(k), k),) * spatial))


def per_token(
    frame: Frame, op: Op, ins: list[Value | None], args: dict[str, Any], binding: Binding, path: str, at: Path
) -> list[Value]:
    """`per: {by: modality, of: [text, image]}`: own weights for each value of an attribute of the tokens."""
    per = args["per"]
    here = (*at, "per")
    if not isinstance(per, dict) or set(per) != {"by", "of"} or not isinstance(per["of"], list):
        frame.fail("S103", "'per' reads {by: ATTRIBUTE, of: [a, b]}", here)
    x = ins[0]
    assert x is not None
    index = frame.attribute(str(per["by"]), x.type.dims)
    if index is None:
        frame.fail("S206", f"the tokens of {x.type} have no attribute '{per['by']}'", here)
    groups = Dim(str(len(per["of"])), len(per["of"]))
    stacked: list[Value | None] = []
    for i, w in enumerate(op.weights):
        made = [weight(frame, op, w, i, binding, args, f"{path}.{entry}", at) for entry in per["of"]]
        if made[0] is None:
            stacked.append(None)
            continue
        dims = frame.unit.params[made[0]].type.dims
        stacked += frame.emit("stack", list(made), (TensorType((groups, *dims)),), {"dim": groups}, path)
    types = infer(frame, op, ins, args, binding, at)
    if op.name == "linear":
        names = [x.name, index.name, *(s.name if s else None for s in stacked)]
        while names[-1] is None:
            names.pop()
        y = frame.emit("routed_linear", names, types, {}, path, frame.locate(at))[0]
        return [y if args.get("tie") else with_adapters(frame, [x, index], y, per["of"], binding, path, at)]
    picked: list[str | None] = []
    for s in stacked:
        if s is None:
            picked.append(None)
            continue
        token_type = OPS["take"].infer
        assert token_type is not None
        t = token_type(Applied((s.type, index.type), {"over": groups}, {}))
        picked.append(frame.emit("take", [s.name, index.name], t, {"over": groups}, path)[0].name)
    return frame.emit(op.name, [x.name, *picked], types, plain_attrs(op, args), path, frame.locate(at))
