"""A parameter of a step: a new one of its unit, or that of the call that this one is tied to."""

from __future__ import annotations

from typing import Any

from specc.compiler.elaborate.scope import Frame, Path
from specc.compiler.elaborate.tie import ANOTHER_NAME, shared_weight
from specc.compiler.types import TensorType


def new_param(frame: Frame, local: str, type_: TensorType, init: Any, at: Path) -> str:
    if frame.tie is not None:
        return shared_weight(frame, local, type_, at)
    unit = frame.unit
    taken = (
        local in frame.ctx.model.params
        if frame.own_unit is None
        else any(p.local == local for p in unit.params.values())
    )
    if taken:
        frame.fail("S109", f"two parameters are called '{local}'", at, ANOTHER_NAME)
    if any(d.size is None for d in type_.dims):
        frame.fail("S205", f"the parameter '{local}' has a dim without a size: {type_}", at)
    name = unit.add_param(local, type_, init)
    if frame.own_unit is None:
        frame.ctx.model.add_param(local, unit.params[name])
    return name
