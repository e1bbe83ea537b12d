"""Tied weights: a step that uses a parameter of another step."""

from __future__ import annotations

from specc.compiler.elaborate.scope import Frame, Path
from specc.compiler.program import Init
from specc.compiler.types import TensorType
from specc.spec.errors import did_you_mean


def tied_weight(frame: Frame, source: str, wanted: TensorType, at: Path) -> str:
    """The operand for a weight shared with the step `source` (or a parameter's path), dims in the wanted order."""
    params = frame.ctx.model.params
    path = source if source in params else f"{source}.weight"
    if path not in params:
        known = [p.removesuffix(".weight") for p in params]
        frame.fail(
            "S105",
            f"there is no parameter '{path}' to share before this step",
            at,
            did_you_mean(source, known),
        )
    have = params[path].type
    if sorted(d.name for d in have.dims) != sorted(d.name for d in wanted.dims):
        frame.fail("S201", f"'{path}' is {have.shown()}, this step needs {wanted.shown()}", at)
    unit = frame.unit
    name = next((n for n, p in unit.params.items() if path in (p.tied, p.local) and frame.own_unit is None), None)
    if name is None:
        name = unit.add_param(path, have, Init("zeros"), tied=path)
    if have.dims == wanted.dims:
        return name
    letters = {d.name: f"a{i}" for i, d in enumerate(have.dims)}
    pattern = f"{' '.join(letters.values())} -> {' '.join(letters[d.name] for d in wanted.dims)}"
    return frame.emit("rearrange", [name], (wanted,), {"pattern": pattern}, f"{frame.prefix}tie")[0].name
