"""How parameters are kept between steps, given how bodies use them: what each way takes in bytes and in seconds.

Parameters are separable once their uses are known, so which of them are kept split is a knapsack over groups of
parameters (those that the same operands of bodies use), solved by its Pareto points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.placement.cost import Machine, collectives, edge_cost
from specc.compiler.placement.placed import PlacedBody
from specc.compiler.placement.types import Layout, Mesh, Place, R, Role, S, fits
from specc.compiler.program import Param, Program
from specc.compiler.types import TensorType, size_of

HIDDEN = 0.8  # of a collective on parameters runs beside the work of other layers
REPLICATE = "dp_replicate"
STATE_BYTES, GRADIENT_BYTES = 12, 4  # fp32: master weight and two moments; the gradient
MAX_POINTS = 2048


@dataclass(frozen=True)
class Stage:
    """What is split between uses. ZeRO 1: the optimizer's state; 2: gradients too; 3: weights too.

    `mixed` lets some parameters stay whole, where there is room for them."""

    zero: int = 0
    mixed: bool = False


@dataclass(frozen=True)
class Way:
    """A kept layout with what it costs: seconds a step, and bytes on a rank."""

    kept: Layout
    seconds: float
    nbytes: float


def ways(
    param: Param | TensorType, uses: Sequence[Layout], stage: Stage, machine: Machine, sizes: Mapping[str, int],
    tight: bool = False,
) -> list[Way]:  # fmt: skip
    """The ways to keep a parameter; with `tight` memory also split along axes where its uses have it whole."""
    type_, trained = (param.type, param.trainable) if isinstance(param, Param) else (param, True)
    whole = common(uses, machine.mesh)
    split = split_over(type_, whole, machine.mesh, ("batch",)) if stage.zero else whole
    layouts = [*([whole] if stage.mixed else []), split]
    if tight:
        layouts.append(split_over(type_, split, machine.mesh, ("free", "sequence", "experts")))
    return [
        Way(
            kept, sum(_seconds(type_, kept, u, stage, machine, sizes) for u in uses),
            _nbytes(type_, kept, uses, stage, machine, sizes, trained),
        )
        for kept in dict.fromkeys(layouts)
    ]  # fmt: skip


def _seconds(
    type_: TensorType, kept: Layout, use: Layout, stage: Stage, machine: Machine, sizes: Mapping[str, int]
) -> float:
    """Bringing a parameter to its use and its gradient back; ZeRO-3 gathers again for the backward."""
    seconds = edge_cost(type_, kept, use, machine, sizes)
    if stage.zero < 3:
        return (1 - HIDDEN) * seconds
    for m, before, forward, _ in collectives(kept, use):
        seconds += machine.collective(forward, machine.nbytes(type_, before, sizes, skip=m.axis), m.axis)
    for a, axis in enumerate(machine.mesh.axes):
        if not stage.mixed and axis.role == "batch" and kept[a] == R and use[a].kind == "V":
            # what cannot be split is charged as if it were, so that no use is chosen because of it
            seconds += machine.collective("all-gather", machine.nbytes(type_, kept, sizes), a)
    return (1 - HIDDEN) * seconds


def _nbytes(
    type_: TensorType, kept: Layout, uses: Sequence[Layout], stage: Stage, machine: Machine, sizes: Mapping[str, int],
    trained: bool,
) -> float:  # fmt: skip
    n_kept = machine.nbytes(type_, kept, sizes) / machine.itemsize
    n_used = max(machine.nbytes(type_, u, sizes) for u in uses) / machine.itemsize
    is_master = machine.itemsize == 4 and (stage.zero == 3 or kept == common(uses, machine.mesh))
    weights = (n_kept if stage.zero == 3 else n_used) * (0 if trained and is_master else machine.itemsize)
    if not trained:
        return weights
    return weights + n_kept * STATE_BYTES + (n_kept if stage.zero >= 2 else n_used) * GRADIENT_BYTES


def common(uses: Sequence[Layout], mesh: Mesh) -> Layout:
    """Along each axis the split that most uses have, else R."""
    found: list[Place] = []
    for a in range(len(mesh.axes)):
        splits = Counter(u[a] for u in uses if u[a].kind == "S")
        found.append(splits.most_common(1)[0][0] if splits else R)
    return tuple(found)


def split_over(type_: TensorType, layout: Layout, mesh: Mesh, roles: Sequence[Role]) -> Layout:
    """Split along the axes of these roles too, on the largest dim that divides and that no other axis splits.

    An inner axis on the same dim would have to be gathered with it at each use."""
    found = list(layout)
    for a, axis in enumerate(mesh.axes):
        if axis.role not in roles or axis.name == REPLICATE or found[a].kind == "S":
            continue
        taken = {p.dim for b, p in enumerate(found) if p.kind == "S" and mesh.axes[b].role not in roles}
        free = sorted((p for p in range(len(type_.dims)) if p not in taken), key=lambda p: -size_of(type_.dims[p], {}))
        tried = ((*found[:a], S(p), *found[a + 1 :]) for p in free)
        found = list(next((t for t in tried if fits(type_, t, mesh, {})), tuple(found)))
    return tuple(found)


@dataclass(frozen=True)
class Shared:
    """Parameters that the same operands of bodies use, so that they are kept alike."""

    paths: tuple[str, ...]
    uses: tuple[tuple[str, int], ...]  # body and place among its parameters


def shared(program: Program) -> list[Shared]:
    """Groups of parameters, in the order of the program."""
    uses: dict[str, list[tuple[str, int]]] = {p: [] for p in program.params}
    for call in program.calls:
        for i, path in enumerate(call.params):
            uses[path].append((call.body, i))
    alike: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for path, found in uses.items():
        alike.setdefault(tuple(dict.fromkeys(found)), []).append(path)
    return [Shared(tuple(paths), key) for key, paths in alike.items()]


@dataclass(frozen=True)
class Kept:
    """The kept layout of every parameter, with what all of it costs."""

    layouts: Mapping[str, Layout]
    seconds: float
    nbytes: float


def keep(
    program: Program, bodies: Mapping[str, PlacedBody], stage: Stage, machine: Machine, sizes: Mapping[str, int],
    room: float | None = None,
) -> Kept:  # fmt: skip
    """The fastest way to keep all parameters in `room` bytes; the smallest if there is none."""
    groups = shared(program)
    each: list[list[Way]] = []
    for g in groups:
        uses = [bodies[b].params[i] for b, i in g.uses] or [(R,) * len(machine.mesh.axes)]
        found = ways(program.params[g.paths[0]], uses, stage, machine, sizes, room is not None)
        n = len(g.paths)
        each.append([Way(w.kept, n * w.seconds, n * w.nbytes) for w in found])
    chosen = knapsack(each, room) or [min(found, key=lambda w: w.nbytes) for found in each]
    layouts = {p: w.kept for g, w in zip(groups, chosen, strict=True) for p in g.paths}
    ordered = {p: layouts[p] for p in program.params}
    return Kept(ordered, sum(w.seconds for w in chosen), sum(w.nbytes for w in chosen))


def knapsack(each: Sequence[Sequence[Way]], room: float | None) -> list[Way] | None:
    """One way of each group with the least seconds in the room; None if there is none.

    Exact while there are at most MAX_POINTS Pareto points; beyond that neighbours are merged, the smaller kept."""
    points: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for found in each:
        grown = [(b + w.nbytes, s + w.seconds, (*path, k)) for b, s, path in points for k, w in enumerate(found)]
        points = _pareto([p for p in grown if room is None or p[0] <= room])
        if not points:
            return None
    best = min(points, key=lambda p: (p[1], p[0]))
    return [found[k] for found, k in zip(each, best[2], strict=True)]


def _pareto(points: list[tuple[float, float, tuple[int, ...]]]) -> list[tuple[float, float, tuple[int, ...]]]:
    kept: list[tuple[float, float, tuple[int, ...]]] = []
    for p in sorted(points):
        if not kept or p[1] < kept[-1][1]:
            kept.append(p)
    if len(kept) <= MAX_POINTS:
        return kept
    step = -(-len(kept) // MAX_POINTS)
    return [*kept[::step], *([kept[-1]] if (len(kept) - 1) % step else [])]
