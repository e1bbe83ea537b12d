"""The calls of a repeat: a body for the tiles that are alike, and for each tile a call with parameters of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specc.compiler.elaborate.scope import Frame, Path
from specc.compiler.elaborate.unit import Locate, Planned, Unit, Value
from specc.compiler.program import Body, Call
from specc.compiler.types import TensorType, same
from specc.spec.expr import parse
from specc.spec.model import Block


@dataclass(frozen=True)
class Tiles:
    """A repeat: the block, the arguments of each of its calls, and the number of the first."""

    block: Block
    locate: Locate
    where: Path
    name: str
    label: str
    start: int
    rows: list[Any]
    at: Path

    @property
    def carried(self) -> list[str | None]:
        """For each output the input that it becomes in the next tile; a single output becomes the first input."""
        outs = [self.block.out] if isinstance(self.block.out, str) else self.block.out
        if len(outs) == 1:
            return [next(iter(self.block.in_), None)]
        return [o if o in self.block.in_ else None for o in outs]


@dataclass(frozen=True)
class Tile:
    """A body with the operands that it takes from the model, and its results."""

    body: Body
    unit: Unit
    outs: list[Value]


def own_keys(frame: Frame, tiles: Tiles, i: int, tile: Tile, ins: dict[str, Value]) -> dict[str, str]:
    """For keys of the body's dropouts, by the model's value, one of the call's own: masks of tiles differ.

    A key that is carried is the block's own affair."""
    keys = {e.ins[1] for e in tile.body.eqns if e.op == "dropout"}
    given = {v.name: f"x_{n}" for n, v in ins.items() if n not in tiles.carried} | tile.unit.captured
    number = 1 + i + sum(len(p.calls) for p in frame.ctx.model.planned)
    formula = {"formula": parse(f"where(key < 0, key, key + {number << 32})")}
    made = {value: tile.unit.ins[local].type for value, local in given.items() if local in keys}
    return {value: frame.emit("expr", [value], (t,), formula, tiles.label)[0].name for value, t in made.items()}


def check_carried(frame: Frame, tiles: Tiles, tile: Tile, ins: dict[str, Value]) -> None:
    """Results that become inputs of the same body have their types."""
    for (name, value), var in zip(ins.items(), tile.unit.ins.values(), strict=False):
        if name in tiles.carried and not _same_type(value.type, var.type):
            text = f"`{tiles.name}` turns {var.type.shown()} into {value.type.shown()}, so it cannot be repeated"
            frame.fail("S205", text, tiles.at)


def _same_type(a: TensorType, b: TensorType) -> bool:
    alike = a.dtype == b.dtype and len(a.dims) == len(b.dims)
    return alike and all(same(x, y) for x, y in zip(a.dims, b.dims, strict=True))


def plan_call(frame: Frame, tiles: Tiles, i: int, tile: Tile, operands: list[str], count: int) -> list[str]:
    """Plan a call behind `count` of the same body; the names of its results."""
    model, body = frame.ctx.model, tile.body
    frame.ctx.count(1 + len(body.params) + len(tile.outs), frame.locate(tiles.at))
    names = [model.segment.fresh() for _ in tile.outs]
    model.types |= {n: o.type for n, o in zip(names, tile.outs, strict=True)}
    paths = tuple(p.tied or f"{frame.prefix}{tiles.label}.{tiles.start + i}.{p.local}" for p in body.params)
    for path, p in zip(paths, body.params, strict=True):
        if not p.tied and path in model.params:
            hint = "give one of the repeats another 'name:'"
            frame.fail("S109", f"two parameters are called '{path}'", tiles.at, hint)
        if not p.tied:
            model.add_param(path, p)
    call = Call(body.name, count, tuple(operands), paths, tuple(names))
    if model.planned and model.planned[-1].body is body:
        model.planned[-1].calls.append(call)
    else:
        model.planned.append(Planned(tile.unit, body.name, [call], body))
    return names


def results(frame: Frame, tiles: Tiles, made: list[list[Value]]) -> list[Value]:
    """What is carried as the last tile has it; the sum over all tiles of the others (a router's loss, say)."""
    found: list[Value] = []
    for j, spot in enumerate(tiles.carried):
        total = made[-1][j]
        for outs in made[:-1] if spot is None else []:
            if not _same_type(total.type, outs[j].type):
                text = (
                    f"calls of `{tiles.name}` give {outs[j].type.shown()} and {total.type.shown()}, which have no sum"
                )
                frame.fail("S205", text, tiles.at, "name the result as the input that it becomes")
            total = add(frame, total, outs[j], tiles.label)
        found.append(total)
    return found


def add(frame: Frame, a: Value, b: Value, path: str) -> Value:
    """The sum of two values."""
    return frame.emit("expr", [a.name, b.name], (a.type,), {"formula": parse("a + b")}, path)[0]
