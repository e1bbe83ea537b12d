"""A stage of a spec as a program, before it is placed and lowered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specc.compiler.build import placement
from specc.compiler.elaborate import elaborate_stage
from specc.compiler.ops.row import Op
from specc.compiler.ops.user import user_ops
from specc.compiler.placement.mesh import mesh_mistakes, mesh_of
from specc.compiler.placement.placed import Placed
from specc.compiler.program import Program
from specc.compiler.training import trained
from specc.spec.errors import Diagnostic, SpecError, did_you_mean, in_order
from specc.spec.spec import Spec


@dataclass(frozen=True)
class Stated:
    """A stage of a spec as a program, with the sizes of its open dims."""

    spec: Spec
    name: str
    program: Program
    sizes: Mapping[str, int]
    rows: Mapping[str, Op]

    def placed(self) -> Placed:
        """On the mesh of the plan."""
        return placement(self.spec.plan, self.program, mesh_of(self.spec.plan), self.sizes, self.rows)


def stated(spec: Spec, name: str | None = None) -> Stated:
    """A stage of a spec (default: the first). Raises SpecError for what is wrong with its plan."""
    if mistakes := mesh_mistakes(spec):
        raise SpecError(*in_order(mistakes))
    if name is not None and name not in spec.stages:
        raise SpecError(Diagnostic("S302", f"no stage is called '{name}'", hint=did_you_mean(name, spec.stages)))
    if not spec.stages:
        raise SpecError(Diagnostic("S305", "there are no stages to place", spec.mark(()), "add 'stages:'"))
    found = name or next(iter(spec.stages))
    stage = spec.stages[found]
    program, sizes = trained(elaborate_stage(spec, stage), stage)
    return Stated(spec, found, program, sizes, user_ops(spec, (), ()))
