"""What cannot be placed, as diagnostics: which dim, which axis, and the smallest change that works."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from specc.compiler.placement.options import Options
from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.roles import KIND_OF, Followed
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import Eqn, Program
from specc.compiler.types import size_of
from specc.compiler.units import size
from specc.spec.errors import Diagnostic, SpecError, did_you_mean

MAX_FREE = 2


def check_axes(program: Program, mesh: Mesh, sizes: Mapping[str, int], followed: Followed, options: Options) -> None:
    """Dims divide over the axes whose roles split them; not more axes are free than the solver takes."""
    free = [a for a in mesh.axes if a.role == "free" and a.size > 1]
    if len(free) > MAX_FREE:
        names = ", ".join(a.name for a in free)
        hint = "give one of them a role: dp, cp or ep"
        raise SpecError(
            Diagnostic("S502", f"{len(free)} axes are free ({names}); the solver takes {MAX_FREE}", None, hint)
        )
    heads = _uneven_heads(program, mesh, sizes, options)
    found = list(dict.fromkeys([*_uneven(program, mesh, sizes, followed), *heads]))
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


def _uneven_heads(program: Program, mesh: Mesh, sizes: Mapping[str, int], options: Options) -> Iterator[Diagnostic]:
    """Query heads and experts over the axes that split them."""
    for body in program.bodies.values():
        types = body.types()
        for e in body.eqns:
            for axis in mesh.axes:
                dim = None
                if e.op == "attend" and axis.name in options.split_weights:
                    dim = types[e.ins[0] or ""].dims[-2]
                elif e.op == "dispatch" and axis.role == "experts":
                    dim = e.types[2].dims[0]
                if dim is not None and (n := size_of(dim, sizes)) % axis.size:
                    yield uneven(dim.name, n, axis)


def check_pins(
    program: Program, each: Mapping[str, Sequence[Sequence[Sequence[Strategy]]]], mesh: Mesh, options: Options
) -> None:
    """Every pin names a step, an axis, and one of the strategies there."""
    steps = {f"{n}.{e.path}": (n, k) for n, b in program.bodies.items() for k, e in enumerate(b.eqns)}
    axes = [a.name for a in mesh.axes]
    for path, pins in options.pins.items():
        if path not in steps:
            raise unknown_path(path, list(steps))
        body, k = steps[path]
        for axis, name in pins.items():
            if axis not in axes:
                hint = did_you_mean(axis, axes)
                raise SpecError(Diagnostic("S505", f"the mesh has no axis '{axis}' to pin '{path}' on", None, hint))
            if not each[body][k][axes.index(axis)]:
                text = f"'{path}' cannot be '{name}' over {mesh.axes[axes.index(axis)]}"
                raise SpecError(Diagnostic("S505", text, None, "strategies: rep, split:DIM, sum:DIM, linear, ..."))


def unknown_path(path: str, known: Sequence[str]) -> SpecError:
    return SpecError(Diagnostic("S505", f"no step is called '{path}'", None, did_you_mean(path, known)))


def uneven(dim: str, size: int, axis: Axis) -> Diagnostic:
    """A dim that leaves a rest over an axis."""
    fitting = next(n for n in range(axis.size, 0, -1) if size % n == 0)
    larger = -(-size // axis.size) * axis.size
    hint = f"{axis.name}: {fitting}" + (f", or {dim}: {larger}" if dim.isidentifier() else "")
    return Diagnostic("S501", f"the dim '{dim}' of {size} does not divide over {axis}", None, hint)


def too_wide(body: str) -> SpecError:
    text = f"'{body}' has too many ways to be split over the free axes together"
    return SpecError(Diagnostic("S502", text, None, "give one of them a role: dp, cp or ep"))


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
