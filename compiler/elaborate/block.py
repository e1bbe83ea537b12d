"""Block calls and repeats: a block is inlined where it is called; a repeat of the model becomes one tiled body."""

from __future__ import annotations

from functools import partial
from typing import Any

from specc.compiler.elaborate.args import block_value, declared, named_args
from specc.compiler.elaborate.mismatch import mismatch
from specc.compiler.elaborate.scope import Frame, Path, Poisoned, StepFailed, gather
from specc.compiler.elaborate.step import apply_op
from specc.compiler.elaborate.unit import Locate, Planned, Unit, Value
from specc.compiler.program import Body, Call, Var
from specc.compiler.rules import Binding, Mismatch, match
from specc.compiler.rules import Token as RuleToken
from specc.compiler.types import TensorType, same
from specc.spec.errors import Diagnostic, Mark, did_you_mean
from specc.spec.expr import parse
from specc.spec.model import Block, Step
from specc.spec.repair import UNKNOWN

REPEAT_KEYS = ["block", "times", "args", "start", "each", "reverse"]
MAX_TILES = 4096
STEP = 10  # what a step costs, in parameters


def run_steps(frame: Frame, steps: list[Step], at: Path) -> None:
    """Elaborate steps in order; a step with a mistake is recorded and its results are unknown."""
    for i, step in enumerate(steps):
        here = (*at, i)
        frame.ctx.count(STEP, frame.locate(here))
        try:
            if not guard(frame, step, here):
                continue
            outs: list[Value] | None = run_step(frame, step, here)
        except Poisoned:
            outs = None
        except StepFailed as e:
            frame.ctx.diagnostics += e.diagnostics
            outs = None
        bind_outs(frame, step, outs, here)


def guard(frame: Frame, step: Step, at: Path) -> bool:
    """`when:` over the block's arguments; a text or mapping counts as given or not."""
    when = step.when
    if when is None or isinstance(when, bool):
        return when is not False
    e = frame.expr(when, (*at, "when"))
    plain = e.args[0] if e.op == "not" else e
    if plain.op == "name" and str(plain.value) in frame.args:
        given = frame.args[str(plain.value)] not in (None, False, 0)
        return given != (e.op == "not")
    return bool(frame.number(when, (*at, "when")))


def run_step(frame: Frame, step: Step, at: Path) -> list[Value]:
    if step.op == "repeat":
        return repeat(frame, step, at)
    if step.op == UNKNOWN:
        raise Poisoned
    op = frame.ctx.ops.get(step.op)
    if op is not None and not op.internal:
        return apply_op(frame, op, step, at)
    block, locate, where = find_block(frame, step.op, at)
    try:
        ins = wired(frame, block, step, at)
    except Poisoned:
        look_inside(frame, block, locate, where, step.op, step.args, at)
        raise
    inner = enter(frame, block, locate, where, step.op, step.args, ins, step.name or step.op, at)
    return leave(inner, block, where)


def bind_outs(frame: Frame, step: Step, outs: list[Value] | None, at: Path) -> None:
    names = [step.as_] if isinstance(step.as_, str) else list(step.as_ or [])
    if outs is not None and len(names) > len(outs):
        mark = frame.locate((*at, "as"))
        frame.ctx.diagnostics.append(
            Diagnostic("S105", f"`{step.op}` has {len(outs)} results, 'as' names {len(names)}", mark)
        )
    for i, name in enumerate(names):
        frame.values[name] = outs[i] if outs is not None and i < len(outs) else None
    frame.values["_"] = outs[0] if outs else None


def find_block(frame: Frame, name: str, at: Path) -> tuple[Block, Locate, Path]:
    """A block of the model, or of the library, with where its text stands."""
    if name in frame.stack:
        frame.fail("S106", f"the block '{name}' is part of itself", at)
    if frame.local_blocks and name in frame.ctx.spec.blocks:
        root: Path = frame.at[: frame.at.index("blocks")] if "blocks" in frame.at else frame.at
        return frame.ctx.spec.blocks[name], frame.locate, (*root, "blocks", name)
    found = frame.ctx.library(name)
    if found is None:
        known = [*frame.ctx.ops, "repeat", *frame.ctx.spec.blocks, *frame.ctx.library_names()]
        frame.fail("S106", f"no op or block is called '{name}'", at, did_you_mean(name, known))
    return found[0], found[1], ()


def wired(frame: Frame, block: Block, step: Step, at: Path) -> dict[str, Value]:
    """The block's inputs by name; without `from:` the first one is the previous output."""
    spots = list(block.in_)
    here = (*at, "from") if step.from_ is not None else at
    if isinstance(step.from_, dict):
        given = dict(step.from_)
    else:
        listed = [step.from_] if isinstance(step.from_, str) else list(step.from_ or (["_"] if spots else []))
        if len(listed) > len(spots):
            frame.fail("S105", f"`{step.op}` takes {len(spots)} inputs, got {len(listed)}", here)
        given = dict(zip(spots, listed, strict=False))
    for name in given:
        if name not in spots:
            frame.fail("S105", f"`{step.op}` has no input '{name}'", here, did_you_mean(name, spots))
    for name in spots:
        if name not in given:
            frame.fail("S107", f"`{step.op}` needs its input '{name}'; say 'from: [{', '.join(spots)}]'", here)
    return {n: frame.value(given[n], here) for n in spots}


def enter(
    frame: Frame, block: Block, locate: Locate, where: Path, name: str, raw: Any, ins: dict[str, Value], label: str,
    at: Path, unit: Unit | None = None, prefix: str | None = None,
) -> Frame:  # fmt: skip
    """Elaborate a block's steps in a frame of its own."""
    inner = scope(frame, block, locate, where, name, at, unit or frame.own_unit)
    inner.prefix = f"{frame.prefix}{label}." if prefix is None else prefix
    set_args(frame, inner, block, raw, (*at, name))
    called = frame.called_at or frame.locate((*at, name))
    gather(partial(bind_input, inner, block, spot, value, (*where, "in", spot), called) for spot, value in ins.items())
    inner.values["_"] = next(iter(ins.values()), None)
    run_steps(inner, block.steps, (*where, "steps"))
    return inner


def scope(frame: Frame, block: Block, locate: Locate, where: Path, name: str, at: Path, unit: Unit | None) -> Frame:
    """What the steps of a block see: blocks of the model see its dims and numbers, blocks of the library do not."""
    frame.ctx.count(STEP, frame.locate(at))
    if frame.ctx.spec.blocks.get(name) is not block:
        called_at = frame.called_at or frame.locate((*at, name))
        return Frame(
            frame.ctx, locate, where, unit, local_blocks=False, stack=(*frame.stack, name), called_at=called_at
        )
    return Frame(
        frame.ctx, locate, where, unit, stack=(*frame.stack, name), dims=dict(frame.ctx.model_dims),
        args=dict(frame.ctx.spec.numbers), unknown=set(frame.ctx.unknown),
    )  # fmt: skip


def look_inside(frame: Frame, block: Block, locate: Locate, where: Path, name: str, raw: Any, at: Path) -> None:
    """Find the mistakes in a block whose inputs are not known, because of one before it."""
    inner = scope(frame, block, locate, where, name, at, Unit(""))
    declared_dims = [w for d in block.in_.values() for w in input_pattern(d)]
    inner.unknown |= set(declared_dims) - set(inner.dims)
    set_args(frame, inner, block, raw, (*at, name))
    inner.values |= dict.fromkeys(["_", *block.in_], None)
    run_steps(inner, block.steps, (*where, "steps"))


def input_pattern(declared_dims: str | list[str | int]) -> list[str]:
    """The words of `[B S D]`, `float[B S D]` or a list of dims."""
    words = declared_dims if isinstance(declared_dims, str) else " ".join(map(str, declared_dims))
    return words.removeprefix("float").removeprefix("int").removeprefix("bool").strip().strip("[]").split()


def set_args(frame: Frame, inner: Frame, block: Block, raw: Any, at: Path) -> None:
    """Block arguments from the caller, then defaults, which may name earlier arguments."""
    given = named_args(frame, raw, list(block.args), f"`{at[-1]}`", at)
    for name, text in block.args.items():
        kind, optional, default = declared(inner, text, (*inner.at, "args", name))
        if name in given:
            value = block_value(frame, kind, given[name], (*at, name))
        elif optional:
            value = block_value(inner, kind, default, (*inner.at, "args", name))
        else:
            frame.fail("S107", f"`{at[-1]}` needs '{name}'", at)
        inner.args[name] = value
        if kind == "dim" and value is not None:
            inner.dims[name] = value
        if kind == "value" and value is not None:  # its steps call it by the argument's name
            inner.values[name] = handed(inner, frame if name in given else inner, value, (*at, name))
            inner.args[name] = name


def handed(inner: Frame, frame: Frame, name: str, at: Path) -> Value:
    """A value of the caller, as seen in the block: one that is repeated has operands of its own."""
    value = frame.value(name, at)
    if inner.own_unit is None or inner.own_unit is frame.own_unit:
        return value
    return Value(inner.own_unit.capture(value.name, value.type), value.type, value.by, value.mark)


def bind_input(inner: Frame, block: Block, spot: str, value: Value, at: Path, called: Mark | None) -> None:
    """Match an input's type with the block's declaration `[B S D]` and bind the names of its dims."""
    pattern = tuple(RuleToken(w, many=w == "...") for w in input_pattern(block.in_[spot]))
    binding: Binding = {t.letter: (inner.dims[t.letter],) for t in pattern if t.letter in inner.dims}
    try:
        match(pattern, value.type.dims, binding)
    except Mismatch as e:
        raise StepFailed(mismatch(inner, inner.stack[-1], e, value, at, spot, called)) from None
    inner.dims |= {letter: dims[0] for letter, dims in binding.items() if letter != "..." and len(dims) == 1}
    inner.values[spot] = value


def leave(inner: Frame, block: Block, where: Path) -> list[Value]:
    names = [block.out] if isinstance(block.out, str) else block.out
    return [inner.value(n, (*where, "out")) for n in names]


def repeat(frame: Frame, step: Step, at: Path) -> list[Value]:
    """`repeat: {block: b, times: L}`: outputs named as inputs are carried from tile to tile."""
    here = (*at, "repeat")
    args = named_args(frame, step.args, REPEAT_KEYS, "`repeat`", here)
    if "each" in args:
        return levels(frame, step, args, at)
    for key in ("block", "times"):
        if key not in args:
            frame.fail("S107", f"`repeat` needs '{key}'", here)
    name = str(args["block"])
    times, start = (
        int(frame.number(args["times"], (*here, "times"))),
        int(frame.number(args.get("start", 0), here)),
    )
    if not 0 <= times <= MAX_TILES:
        frame.fail("S103", f"'times' is 0 to {MAX_TILES}, got {times}", (*here, "times"))
    block, locate, where = find_block(frame, name, (*here, "block"))
    try:
        ins = wired(frame, block, Step(op=name, **{"from": step.from_}), at)
    except Poisoned:
        look_inside(frame, block, locate, where, name, args.get("args"), here)
        raise
    label = step.name or name
    if frame.own_unit is not None:
        return unrolled(
            frame, block, locate, where, name, args.get("args"), ins, label, range(start, start + times), here
        )
    return tiled(frame, block, locate, where, name, args.get("args"), ins, label, range(start, start + times), here)


def levels(frame: Frame, step: Step, args: dict[str, Any], at: Path) -> list[Value]:
    """`repeat: {block: b, each: {out: widths}}`: a call for each entry, with arguments and shapes of its own.

    A block that declares `tile` and `tiles` is told which call of how many it is."""
    here = (*at, "repeat")
    shared = args.get("args") or {}
    if "block" not in args or "times" in args or not (isinstance(args["each"], dict) and isinstance(shared, dict)):
        frame.fail("S103", "a repeat over lists reads {block: NAME, each: {ARGUMENT: LIST}}, without 'times'", here)
    lists = {n: frame.entries(raw, (*here, "each", n)) for n, raw in args["each"].items()}
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=False)]
    if any(len(entries) != len(rows) for entries in lists.values()):
        lengths = ", ".join(f"'{n}' has {len(entries)}" for n, entries in lists.items())
        frame.fail("S103", f"the lists differ in length: {lengths}", (*here, "each"))
    if args.get("reverse"):
        rows.reverse()
    name = str(args["block"])
    block, locate, where = find_block(frame, name, (*here, "block"))
    ins = wired(frame, block, Step(op=name, **{"from": step.from_}), at)
    outs = list(ins.values())[:1]
    start = int(frame.number(args.get("start", 0), (*here, "start")))
    for tile, row in enumerate(rows):
        told = {n: v for n, v in (("tile", tile), ("tiles", len(rows))) if n in block.args}
        given = {**shared, **row, **told}
        inner = enter(frame, block, locate, where, name, given, ins, f"{step.name or name}.{start + tile}", here)
        outs = leave(inner, block, where)
        ins = ins | {spot: out for spot, out in zip(carried(block), outs, strict=True) if spot}
    return outs


def carried(block: Block) -> list[str | None]:
    """For each output the input that it becomes in the next tile; a single output becomes the first input."""
    outs = [block.out] if isinstance(block.out, str) else block.out
    if len(outs) == 1:
        return [next(iter(block.in_), None)]
    return [o if o in block.in_ else None for o in outs]


def unrolled(
    frame: Frame,
    block: Block,
    locate: Locate,
    where: Path,
    name: str,
    raw: Any,
    ins: dict[str, Value],
    label: str,
    tiles: range,
    at: Path,
) -> list[Value]:
    outs: list[Value] = list(ins.values())[:1]
    for i in tiles:
        outs = leave(enter(frame, block, locate, where, name, raw, ins, f"{label}.{i}", at), block, where)
        ins = ins | {spot: out for spot, out in zip(carried(block), outs, strict=True) if spot}
    return outs


def tiled(
    frame: Frame,
    block: Block,
    locate: Locate,
    where: Path,
    name: str,
    raw: Any,
    ins: dict[str, Value],
    label: str,
    tiles: range,
    at: Path,
) -> list[Value]:
    """Elaborate the body once, then plan a call for each tile."""
    unit = Unit("")
    local = {n: Value(f"x_{n}", v.type, v.by, v.mark) for n, v in ins.items()}
    unit.ins = {v.name: Var(v.name, v.type) for v in local.values()}
    inner = enter(frame, block, locate, where, name, raw, local, label, at, unit, prefix="")
    outs = leave(inner, block, where)
    spots = carried(block)
    for out, spot in zip(outs, spots, strict=True):
        if spot and len(tiles) > 1 and not _same_type(out.type, ins[spot].type):
            frame.fail(
                "S205",
                f"`{name}` turns {ins[spot].type.shown()} into {out.type.shown()}, so it cannot be repeated",
                at,
            )
    if not len(tiles):
        return list(ins.values())[:1]
    body = Body(
        _body_name(frame, label),
        tuple(unit.ins.values()),
        tuple(unit.params.values()),
        tuple(unit.eqns),
        tuple(o.name for o in outs),
    )
    return plan_calls(frame, body, unit, ins, outs, spots, label, tiles, at)


def _same_type(a: TensorType, b: TensorType) -> bool:
    return (
        a.dtype == b.dtype
        and len(a.dims) == len(b.dims)
        and all(same(x, y) for x, y in zip(a.dims, b.dims, strict=True))
    )


def _body_name(frame: Frame, label: str) -> str:
    taken = [p.name for p in frame.ctx.model.planned]
    return label if label not in taken else f"{label}_{len(taken)}"


def plan_calls(
    frame: Frame,
    body: Body,
    unit: Unit,
    ins: dict[str, Value],
    outs: list[Value],
    spots: list[str | None],
    label: str,
    tiles: range,
    at: Path,
) -> list[Value]:
    model = frame.ctx.model
    frame.ctx.count(len(tiles) * (1 + len(body.params) + len(outs)), frame.locate(at))
    model.close_segment()
    now = {n: v.name for n, v in ins.items()}
    calls: list[Call] = []
    made: list[list[str]] = []
    for tile, i in enumerate(tiles):
        operands = [now[n] for n in ins] + list(unit.captured)
        names = [model.segment.fresh() for _ in outs]
        model.types |= {n: o.type for n, o in zip(names, outs, strict=True)}
        paths = tuple(p.tied or f"{frame.prefix}{label}.{i}.{p.local}" for p in body.params)
        for path, p in zip(paths, body.params, strict=True):
            if not p.tied and path in model.params:
                frame.fail(
                    "S109",
                    f"two parameters are called '{path}'",
                    at,
                    "give one of the repeats another 'name:'",
                )
            if not p.tied:
                model.add_param(path, p)
        calls.append(Call(body.name, tile, tuple(operands), paths, tuple(names)))
        made.append(names)
        now |= {spot: n for spot, n in zip(spots, names, strict=True) if spot}
    model.planned.append(Planned(unit, body.name, calls, body))
    mark = frame.locate(at)
    results: list[Value] = []
    for j, (out, spot) in enumerate(zip(outs, spots, strict=True)):
        total = Value(made[-1][j], out.type, label, mark)
        for names in made[:-1] if spot is None else []:
            total = add(frame, total, Value(names[j], out.type), label)
        results.append(total)
    return results


def add(frame: Frame, a: Value, b: Value, path: str) -> Value:
    """The sum over tiles of an output that is not carried (a router's loss, say)."""
    return frame.emit("expr", [a.name, b.name], (a.type,), {"formula": parse("a + b")}, path)[0]
