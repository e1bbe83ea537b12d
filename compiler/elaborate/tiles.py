"""The calls of a repeat: a body for the tiles that are alike, and for each tile a call with parameters of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from specc.compiler.elaborate.scope import Frame, Path
from specc.compiler.elaborate.tie import followed, note_tile, shared_path
from specc.compiler.elaborate.unit import Called, Locate, Planned, Unit, Value, is_segment
from specc.compiler.program import Body, Call, Var
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
    """A body, its results, and what it takes from the model beside the block's inputs: values, and for each input of
    `keys` a key of the call's own behind these."""

    body: Body
    captured: Mapping[str, str]  # values of the model by the operands that stand for them
    keys: tuple[str, ...]
    outs: list[Value]
    called: Mapping[str, Called]  # the calls of blocks in it, by paths below its own


def with_own_keys(unit: Unit, outs: list[Value]) -> tuple[Body, tuple[str, ...]]:
    """The body of a unit, in which dropouts by a key that comes from outside take one that is this call's alone."""
    keys = tuple(dict.fromkeys(e.ins[1] for e in unit.eqns if e.op == "dropout" and e.ins[1] in unit.ins))
    own = {key: f"{key}_own" for key in keys if key}
    eqns = (
        replace(e, ins=(e.ins[0], own.get(e.ins[1] or "", e.ins[1]))) if e.op == "dropout" else e for e in unit.eqns
    )
    ins = (*unit.ins.values(), *(Var(mine, unit.ins[key].type) for key, mine in own.items()))
    return Body("", ins, tuple(unit.params.values()), tuple(eqns), tuple(o.name for o in outs)), tuple(own)


def own_keys(frame: Frame, tiles: Tiles, i: int, tile: Tile, ins: dict[str, Value]) -> dict[str, str]:
    """For each key of a tile's dropouts a value of the call's own, so that masks of tiles differ. A key that is carried
    from tile to tile, or made in the block, is the block's own affair."""
    given = {f"x_{n}": v.name for n, v in ins.items() if n not in tiles.carried} | dict(tile.captured)
    number = 1 + i + sum(len(p.calls) for p in frame.ctx.model.planned)
    formula = {"formula": parse(f"where(key < 0, key, key + {number << 32})")}
    types = {v.name: v.type for v in tile.body.ins}
    keys = [key for key in tile.keys if key in given]
    return {key: frame.emit("expr", [given[key]], (types[key],), formula, tiles.label)[0].name for key in keys}


def tile_path(frame: Frame, tiles: Tiles, i: int) -> str:
    """The path that the parameters of a tile stand below."""
    return followed(frame, f"{frame.prefix}{tiles.label}.{tiles.start + i}")[0]


def check_carried(frame: Frame, tiles: Tiles, tile: Tile, ins: dict[str, Value]) -> None:
    """Results that become inputs of the same body have their types."""
    for (name, value), var in zip(ins.items(), tile.body.ins, strict=False):
        if name in tiles.carried and not _same_type(value.type, var.type):
            text = f"`{tiles.name}` turns {var.type.shown()} into {value.type.shown()}, so it cannot be repeated"
            frame.fail("S205", text, tiles.at)


def _same_type(a: TensorType, b: TensorType) -> bool:
    alike = a.dtype == b.dtype and len(a.dims) == len(b.dims)
    return alike and all(same(x, y) for x, y in zip(a.dims, b.dims, strict=True))


def add_params(frame: Frame, tiles: Tiles, i: int, tile: Tile) -> tuple[str, ...]:
    """Add the parameters of a tile to the model, or find those that it shares; their paths, by place."""
    model, label = frame.ctx.model, f"{tiles.label}.{tiles.start + i}"
    note_tile(frame, label, tiles.name, tile.called)
    paths = list[str]()
    for p in tile.body.params:
        own = f"{frame.prefix}{label}.{p.local}"
        if p.tied or frame.tie is not None:
            paths.append(p.tied or shared_path(frame, own, p.type, tiles.at)[0])
            continue
        if own in model.params:
            hint = "give one of the repeats another 'name:', or share its weights: 'tie: NAME'"
            frame.fail("S109", f"two parameters are called '{own}'", tiles.at, hint)
        model.add_param(own, p)
        paths.append(own)
    return tuple(paths)


def plan_call(frame: Frame, tile: Tile, place: int, operands: list[str], paths: tuple[str, ...]) -> list[str]:
    """Plan a call, the body's `place`th; the names of its results."""
    model = frame.ctx.model
    names = [model.segment.fresh() for _ in tile.outs]
    model.types |= {n: o.type for n, o in zip(names, tile.outs, strict=True)}
    call = Call(tile.body.name, place, tuple(operands), paths, tuple(names))
    if model.planned and model.planned[-1].body is tile.body:
        model.planned[-1].calls.append(call)
    else:
        model.planned.append(Planned(Unit(""), tile.body.name, [call], tile.body))
    return names


def free_name(label: str, taken: Collection[str]) -> str:
    """A name for a body that no other has, and no segment will have."""
    names = (label if n == 0 else f"{label}_{n}" for n in count())
    return next(name for name in names if name not in taken and not is_segment(name))


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
