"""Block calls and repeats: a block is inlined where it is called; a repeat of the model becomes one tiled body."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

from specc.compiler.elaborate.adapt import alike
from specc.compiler.elaborate.args import block_value, declared, named_args
from specc.compiler.elaborate.mismatch import mismatch
from specc.compiler.elaborate.scope import Frame, Path, Poisoned, StepFailed, gather
from specc.compiler.elaborate.step import apply_op
from specc.compiler.elaborate.tie import note_call, note_tie, tie_to, without_tie
from specc.compiler.elaborate.tiles import (
    Tile,
    Tiles,
    add_params,
    check_carried,
    free_name,
    own_keys,
    plan_call,
    results,
    tile_path,
    with_own_keys,
)  # fmt: skip
from specc.compiler.elaborate.unit import Locate, Unit, Value
from specc.compiler.program import Var
from specc.compiler.rules import Binding, Mismatch, match
from specc.compiler.rules import Token as RuleToken
from specc.spec.errors import Diagnostic, Mark, did_you_mean
from specc.spec.model import Block, Step
from specc.spec.repair import UNKNOWN

REPEAT_KEYS = ["block", "times", "args", "start", "each", "reverse", "tie"]
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
        other = frame.ctx.instead.get(step.op)
        made = other(frame, step, at) if other else None
        return apply_op(frame, op, step, at) if made is None else made
    block, locate, where = find_block(frame, step.op, at)
    note_call(frame, step.name or step.op, step.op)
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
    tie = frame.tie if unit is frame.own_unit else None  # paths in another unit start anew
    if frame.ctx.spec.blocks.get(name) is not block:
        called_at = frame.called_at or frame.locate((*at, name))
        return Frame(
            frame.ctx, locate, where, unit, tie=tie, local_blocks=False, stack=(*frame.stack, name),
            called_at=called_at,
        )  # fmt: skip
    return Frame(
        frame.ctx, locate, where, unit, tie=tie, stack=(*frame.stack, name), dims=dict(frame.ctx.model_dims),
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
    raw, source = without_tie(frame, block, raw)
    if source is not None:
        inner.tie = tie_to(frame, source, inner.stack[-1], inner.prefix.removesuffix("."), (*at, "tie"))
        note_tie(frame, inner)
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
    """`repeat: {block: b, times: L}`: outputs named as inputs are carried from tile to tile, others are summed.

    With `each: {out: widths}` there is a call for each entry, with arguments and shapes of its own."""
    here = (*at, "repeat")
    args = named_args(frame, step.args, REPEAT_KEYS, "`repeat`", here)
    for key in ("block", *(() if "each" in args else ("times",))):
        if key not in args:
            frame.fail("S107", f"`repeat` needs '{key}'", here)
    start = int(frame.number(args.get("start", 0), (*here, "start")))
    times = None if "each" in args else int(frame.number(args["times"], (*here, "times")))
    if times is not None and not 0 <= times <= MAX_TILES:
        frame.fail("S103", f"'times' is 0 to {MAX_TILES}, got {times}", (*here, "times"))
    name = str(args["block"])
    block, locate, where = find_block(frame, name, (*here, "block"))
    label, what = step.name or name, f"repeat of {name}"
    if args.get("tie") is not None:
        tie = tie_to(frame, args["tie"], what, f"{frame.prefix}{label}", (*here, "tie"))
        frame = replace(frame, tie=tie)
    note_call(frame, label, what)
    rows = entries(frame, block, args, here) if times is None else [args.get("args")] * times
    try:
        ins = wired(frame, block, Step(op=name, **{"from": step.from_}), at)
    except Poisoned:
        look_inside(frame, block, locate, where, name, rows[0] if rows else args.get("args"), here)
        raise
    if not rows:
        if times == 0:  # its mistakes are told all the same
            look_inside(frame, block, locate, where, name, args.get("args"), here)
        return list(ins.values())[:1]
    tiles = Tiles(block, locate, where, name, label, start, rows, here)
    return tiled(frame, tiles, ins) if frame.own_unit is None else unrolled(frame, tiles, ins)


def entries(frame: Frame, block: Block, args: dict[str, Any], here: Path) -> list[Any]:
    """The arguments of each call of a repeat over lists.

    A block that declares `tile` and `tiles` is told which call of how many it is."""
    shared = args.get("args") or {}
    if "times" in args or not (isinstance(args["each"], dict) and isinstance(shared, dict)):
        frame.fail("S103", "a repeat over lists reads {block: NAME, each: {ARGUMENT: LIST}}, without 'times'", here)
    lists = {n: frame.entries(raw, (*here, "each", n)) for n, raw in args["each"].items()}
    rows = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=False)]
    if any(len(found) != len(rows) for found in lists.values()):
        lengths = ", ".join(f"'{n}' has {len(found)}" for n, found in lists.items())
        frame.fail("S103", f"the lists differ in length: {lengths}", (*here, "each"))
    if args.get("reverse"):
        rows.reverse()
    told = [n for n in ("tile", "tiles") if n in block.args]
    numbers = [{"tile": tile, "tiles": len(rows)} for tile in range(len(rows))]
    return [{**shared, **row, **{n: of[n] for n in told}} for row, of in zip(rows, numbers, strict=True)]


def unrolled(frame: Frame, tiles: Tiles, ins: dict[str, Value]) -> list[Value]:
    """In a block that is repeated itself: call after call in its body."""
    made: list[list[Value]] = []
    for i in range(len(tiles.rows)):
        label = f"{tiles.label}.{tiles.start + i}"
        note_call(frame, label, tiles.name)
        made.append(enter_tile(frame, tiles, i, ins, label, None, None))
        ins = ins | {spot: out for spot, out in zip(tiles.carried, made[-1], strict=True) if spot}
    return results(frame, tiles, made)


def tiled(frame: Frame, tiles: Tiles, ins: dict[str, Value]) -> list[Value]:
    """Elaborate a body once for all tiles that have the same arguments and shapes, then plan the calls."""
    found, paths = list[Tile](), list[tuple[str, ...]]()
    given = ins
    for i, row in enumerate(tiles.rows):
        at, before = (tile_path(frame, tiles, n) for n in (i, i - 1))
        if i and row is tiles.rows[i - 1] and alike(frame.ctx.spec.lora, found[-1].body, at, before):
            check_carried(frame, tiles, found[-1], given)
            found.append(found[-1])
        else:
            found.append(tile_of(frame, tiles, i, given, found))
        body, outs = found[-1].body, found[-1].outs
        frame.ctx.count(1 + len(body.params) + len(outs), frame.locate(tiles.at))
        paths.append(add_params(frame, tiles, i, found[-1]))
        given = given | {spot: out for spot, out in zip(tiles.carried, outs, strict=True) if spot}
    own = [own_keys(frame, tiles, i, tile, ins) for i, tile in enumerate(found)]
    frame.ctx.model.close_segment()
    now = {n: v.name for n, v in ins.items()}
    mark, made, calls = frame.locate(tiles.at), list[list[Value]](), Counter[str]()
    for i, tile in enumerate(found):
        known = {f"x_{n}": v for n, v in now.items()} | dict(tile.captured)
        operands = [*known.values(), *(own[i].get(key, known[key]) for key in tile.keys)]
        names = plan_call(frame, tile, calls[tile.body.name], operands, paths[i])
        calls[tile.body.name] += 1
        made.append([Value(n, o.type, tiles.label, mark) for n, o in zip(names, tile.outs, strict=True)])
        now |= {spot: n for spot, n in zip(tiles.carried, names, strict=True) if spot}
    return results(frame, tiles, made)


def enter_tile(
    frame: Frame, tiles: Tiles, i: int, ins: dict[str, Value], label: str, unit: Unit | None, prefix: str | None
) -> list[Value]:  # fmt: skip
    """The results of a tile's steps."""
    block, row = tiles.block, tiles.rows[i]
    inner = enter(frame, block, tiles.locate, tiles.where, tiles.name, row, ins, label, tiles.at, unit, prefix)
    return leave(inner, block, tiles.where)


def tile_of(frame: Frame, tiles: Tiles, i: int, ins: dict[str, Value], before: list[Tile]) -> Tile:
    """The body of a tile; one that is the same as that of a tile before is this one."""
    unit = Unit("", whole=tile_path(frame, tiles, i))
    local = {n: Value(f"x_{n}", v.type, v.by, v.mark) for n, v in ins.items()}
    unit.ins = {v.name: Var(v.name, v.type) for v in local.values()}
    outs = enter_tile(frame, tiles, i, local, tiles.label, unit, "")
    body, keys = with_own_keys(unit, outs)
    known = {t.body.name: t.body for t in before}
    same_body = next((other for name, other in known.items() if replace(other, name="") == body), None)
    taken = {*known, *(p.name for p in frame.ctx.model.planned)}
    captured = {local: value for value, local in unit.captured.items()}
    return Tile(same_body or replace(body, name=free_name(tiles.label, taken)), captured, keys, outs, unit.called)
