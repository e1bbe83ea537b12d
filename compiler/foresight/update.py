"""What the optimizer's kind changes of a body's update, against AdamW's two moments of each number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from specc.compiler.moments import MOMENTS, Matrix, rule_of
from specc.compiler.placement.cost import Machine
from specc.compiler.placement.placed import PlacedBody
from specc.compiler.placement.types import local_shape
from specc.compiler.updating import iteration
from specc.spec.optimizer import Muon, OptimizerSpec

MOMENT = 4  # bytes of one of a number, in fp32
MOVED = 2  # times these: it is read and written


@dataclass(frozen=True)
class Update:
    """Moments fewer than AdamW's, and FLOPs of what makes matrices orthogonal: a rank's share of those that its model
    parallelism splits. ZeRO's ranks share both."""

    spared: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Update) -> Update:
        return Update(self.spared + other.spared, self.flops + other.flops)

    def __truediv__(self, ranks: float) -> Update:
        return Update(self.spared / ranks, self.flops / ranks)


NO_OTHER = Update()


def updates_of(
    spec: OptimizerSpec, b: PlacedBody, matrices: Mapping[str, Matrix], machine: Machine
) -> dict[str, Update]:
    """Of each parameter of a body, by its name there; `matrices` are those that Muon updates, by the same names."""
    found: dict[str, Update] = {}
    for p, layout in zip(b.body.params, b.params, strict=True):
        shape, m = p.type.shape({}), matrices.get(p.name)
        local = local_shape(shape, layout, machine.mesh)
        fewer = len(MOMENTS["adamw"]) - len(MOMENTS[rule_of(spec, m is not None)])
        flops = 0.0
        if m is not None and isinstance(spec, Muon):
            pairs = zip(layout, machine.mesh.axes, strict=True)
            ranks = math.prod(a.size for at, a in pairs if at.kind == "S" and at.dim not in m.alike)
            _, rows, columns = m.sizes(shape)
            flops = spec.steps * m.sizes(local)[0] * iteration(min(rows, columns), max(rows, columns)) / ranks
        found[p.name] = Update(fewer * math.prod(local), flops)
    return found
