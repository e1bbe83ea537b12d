"""What cannot be placed, as diagnostics: which dim, which axis, and the smallest change that works."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.roles import KIND_OF, Followed
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import Eqn, Program
from specc.compiler.types import size_of
from specc.compiler.units import size
from specc.spec.errors import Diagnostic, SpecError

MAX_FREE = 2


def check_axes(program: Program, mesh: Mesh, sizes: Mapping[str, int], followed: Followed) -> None:
    """Batch and sequence of the inputs divide over their axes; not more axes are free than the solver takes."""
    free = [a for a in mesh.axes if a.role == "free" and a.size > 1]
    if len(free) > MAX_FREE:
        names = ", ".join(a.name for a in free)
        hint = "give one of them a role: dp, cp or ep"
        raise SpecError(
            Diagnostic("S502", f"{len(free)} axes are free ({names}); the solver takes {MAX_FREE}", None, hint)
        )
    found = list(dict.fromkeys(_uneven(program, mesh, sizes, followed)))
    if found:
        raise SpecError(*found)


def _uneven(program: Program, mesh: Mesh, sizes: Mapping[str, int], followed: Followed) -> Iterator[Diagnostic]:
    left = {d.name: size_of(d, sizes) for t in program.inputs.values() for d in t.dims[:2]}
    for axis in mesh.axes:
        if axis.role == "free":
            continue
        kind = KIND_OF[axis.role]
        for name in [n for n in left if n in followed.names[kind]]:
            if left[name] % axis.size:
                yield uneven(name, left[name], axis)
            left[name] = max(1, left[name] // axis.size)


def uneven(dim: str, size: int, axis: Axis) -> Diagnostic:
    """A dim that leaves a rest over an axis."""
    fitting = math.gcd(size, axis.size)
    larger = -(-size // axis.size) * axis.size
    hint = f"{axis.name}: {fitting}, or {dim}: {larger}"
    return Diagnostic("S501", f"the dim '{dim}' of {size} does not divide over {axis}", None, hint)


def no_plan(mesh: Mesh) -> SpecError:
    return SpecError(Diagnostic("S503", f"no placement on {mesh} joins all equations", None, "make an axis smaller"))


def no_way(e: Eqn, mesh: Mesh, each: Sequence[Sequence[Strategy]]) -> SpecError:
    """An equation that cannot be split as the roles ask, or not over all axes together."""
    axes = [a for a, found in zip(mesh.axes, each, strict=True) if not found]
    over = " and ".join(map(str, axes)) if axes else f"all of {mesh} together"
    text = f"'{e.path}' ({e.op} -> {', '.join(t.shown() for t in e.types)}) does not divide over {over}"
    return SpecError(Diagnostic("S503", text, None, "make an axis smaller"))


def no_room(least: float, capacity: float, mesh: Mesh) -> SpecError:
    text = f"on {mesh} a rank needs {size(least)}, and has {size(capacity)}"
    return SpecError(Diagnostic("S504", text, None, "more ranks, a smaller microbatch, or 'recompute'"))
