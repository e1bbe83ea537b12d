"""How parameters are kept between steps, given how bodies use them; and what bringing the two together costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from specc.compiler.placement.cost import Machine, edge_cost
from specc.compiler.placement.placed import PlacedBody
from specc.compiler.placement.types import Layout, Mesh, Place, R, S, fits
from specc.compiler.program import Program
from specc.compiler.types import TensorType, size_of

HIDDEN = 0.8  # of a collective on parameters runs beside the work of other layers
REPLICATE = "dp_replicate"


def price_of(type_: TensorType, use: Layout, machine: Machine, sizes: Mapping[str, int]) -> float:
    """Seconds of summing the gradient of a parameter that is used so and kept whole."""
    kept = tuple(R if p.kind == "V" else p for p in use)
    return (1 - HIDDEN) * edge_cost(type_, kept, use, machine, sizes)


def keep(program: Program, bodies: Mapping[str, PlacedBody], mesh: Mesh, zero: int) -> dict[str, Layout]:
    """The kept layout of each parameter: split where its uses have it split, and on batch axes under ZeRO."""
    uses: dict[str, list[Layout]] = {p: [] for p in program.params}
    for call in program.calls:
        for path, use in zip(call.params, bodies[call.body].params, strict=True):
            uses[path].append(use)
    return {
        path: split_over_batch(program.params[path].type, _common(found, mesh), mesh) if zero else _common(found, mesh)
        for path, found in uses.items()
    }


def _common(uses: list[Layout], mesh: Mesh) -> Layout:
    """Along each axis the split that most uses have, else R."""
    found: list[Place] = []
    for a in range(len(mesh.axes)):
        splits = Counter(u[a] for u in uses if u[a].kind == "S")
        found.append(splits.most_common(1)[0][0] if splits else R)
    return tuple(found)


def split_over_batch(type_: TensorType, layout: Layout, mesh: Mesh) -> Layout:
    """Split along the batch axes too, on the largest dim that divides and that no other axis splits.

    An inner axis on the same dim would have to be gathered with it at each use."""
    found = list(layout)
    for a, axis in enumerate(mesh.axes):
        if axis.role != "batch" or axis.name == REPLICATE or found[a].kind == "S":
            continue
        taken = {p.dim for b, p in enumerate(found) if p.kind == "S" and mesh.axes[b].role != "batch"}
        free = sorted((p for p in range(len(type_.dims)) if p not in taken), key=lambda p: -size_of(type_.dims[p], {}))
        for p in free:
            tried = (*found[:a], S(p), *found[a + 1 :])
            if fits(type_, tried, mesh, {}):
                found = list(tried)
                break
    return tuple(found)
