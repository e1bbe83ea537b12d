"""Builders of lowering units: a repeated block has a namespace of its own, the rest of the model a shared one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from specc.compiler.program import Body, BodyParam, Call, Eqn, Init, Param, Var
from specc.compiler.types import TensorType
from specc.spec.errors import Mark


@dataclass(frozen=True)
class Value:
    """A value under construction; `by` and `mark` say which step made it."""

    name: str
    type: TensorType
    by: str = ""
    mark: Mark | None = None


@dataclass(frozen=True)
class Called:
    """A call of a block (or a repeat of one): what it calls, and the path that its parameters stand below."""

    what: str
    path: str
    is_whole: bool  # a path of the whole model, not of the repeated block alone


@dataclass
class Unit:
    """A body under construction."""

    prefix: str  # of value names: unique in the model for segments, empty for repeated blocks
    ins: dict[str, Var] = field(default_factory=dict)
    params: dict[str, BodyParam] = field(default_factory=dict)
    eqns: list[Eqn] = field(default_factory=list)
    captured: dict[str, str] = field(default_factory=dict)  # value of the model -> operand of this body
    called: dict[str, Called] = field(default_factory=dict)  # by path; of segments the model keeps them
    counter: int = 0
    whole: str = ""  # of a tile: its path in the model

    def fresh(self) -> str:
        self.counter += 1
        return f"{self.prefix}{self.counter - 1}"

    def emit(
        self,
        op: str,
        ins: list[str | None],
        types: tuple[TensorType, ...],
        attrs: Mapping[str, Any],
        path: str,
        place: str = "",
    ) -> list[str]:
        outs = tuple(self.fresh() for _ in types)
        self.eqns.append(Eqn(op, tuple(ins), outs, types, dict(attrs), path, place))
        return list(outs)

    def add_param(self, local: str, type_: TensorType, init: Init, tied: str = "") -> str:
        name = f"p{len(self.params)}" if not self.prefix else f"{self.prefix}p{len(self.params)}"
        self.params[name] = BodyParam(name, local, type_, init, tied)
        return name

    def capture(self, name: str, type_: TensorType) -> str:
        """An operand of this body that stands for a value of the model (the same for every tile)."""
        if name not in self.captured:
            local = f"c_{name}"
            self.captured[name] = local
            self.ins[local] = Var(local, type_)
        return self.captured[name]


@dataclass
class Planned:
    """A call whose outs are known; a segment's ins and outs follow from its uses when the model is complete."""

    unit: Unit
    name: str
    calls: list[Call]
    body: Body | None = None  # None: a segment


@dataclass
class Model:
    """The model under construction: a list of planned calls, and the segment that is open at its end."""

    inputs: dict[str, TensorType] = field(default_factory=dict)
    params: dict[str, Param] = field(default_factory=dict)
    planned: list[Planned] = field(default_factory=list)
    bodies: dict[str, Body] = field(default_factory=dict)
    segment: Unit = field(default_factory=lambda: Unit("v"))
    types: dict[str, TensorType] = field(default_factory=dict)
    called: dict[str, Called] = field(default_factory=dict)  # by path

    def close_segment(self) -> None:
        """Start a new segment behind what is planned so far."""
        if self.segment.eqns:
            self.planned.append(Planned(self.segment, "", []))
        counter = self.segment.counter
        self.segment = Unit("v", counter=counter)
        self.segment.params = {}

    def add_param(self, path: str, p: BodyParam) -> None:
        self.params[path] = Param(path, p.type, p.init)


def finish(model: Model, wanted: list[str]) -> tuple[dict[str, Body], tuple[Call, ...]]:
    """Close the segments: what a segment uses and does not make are its ins, what others use its outs."""
    model.close_segment()
    used_later: set[str] = set(wanted)
    bodies: dict[str, Body] = {}
    calls: list[Call] = []
    segments = [p for p in model.planned if p.body is None]
    for planned in reversed(model.planned):
        if planned.body is not None:
            bodies[planned.body.name] = planned.body
            calls[:0] = planned.calls
            used_later |= {i for c in planned.calls for i in c.ins}
            continue
        body = _segment_body(planned, _segment_name(segments, planned), used_later, model)
        bodies[body.name] = body
        paths = tuple(p.tied or p.local for p in body.params)
        calls.insert(0, Call(body.name, 0, tuple(v.name for v in body.ins), paths, body.outs))
        used_later |= {v.name for v in body.ins}
    names = [p.body.name for p in {id(p.body): p for p in model.planned}.values() if p.body is not None]
    assert len(set(names)) == len(names), f"two bodies share a name: {names}"
    order = dict.fromkeys(c.body for c in calls)
    return {name: bodies[name] for name in order}, tuple(calls)


def is_segment(name: str) -> bool:
    """Whether a segment may have this name."""
    return name in ("stem", "head") or bool(re.fullmatch(r"mid_[0-9]+", name))


def _segment_name(segments: list[Planned], planned: Planned) -> str:
    at = next(i for i, p in enumerate(segments) if p is planned)
    if at == 0 and len(segments) > 1:
        return "stem"
    return "head" if at == len(segments) - 1 else f"mid_{at}"


def _segment_body(planned: Planned, name: str, used_later: set[str], model: Model) -> Body:
    unit = planned.unit
    made = {o for e in unit.eqns for o in e.outs} | set(unit.params)
    used = dict.fromkeys(i for e in unit.eqns for i in e.ins if i and i not in made)
    outs = tuple(o for e in unit.eqns for o in e.outs if o in used_later)
    ins = tuple(Var(n, model.types[n]) for n in used)
    return Body(name, ins, tuple(unit.params.values()), tuple(unit.eqns), outs)


Locate = Callable[[tuple[str | int, ...]], Mark | None]
