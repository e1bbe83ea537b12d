"""Where a spec's steps and parameters lie on the mesh of its plan, and what other places would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specc.compiler.build import placement, trained
from specc.compiler.elaborate import elaborate
from specc.compiler.ops.row import Op
from specc.compiler.ops.user import user_ops
from specc.compiler.placement.explain import explain
from specc.compiler.placement.mesh import mesh_mistakes, mesh_of, options_of
from specc.compiler.placement.placed import Placed
from specc.compiler.program import Program
from specc.spec.errors import Diagnostic, SpecError, did_you_mean, in_order
from specc.spec.spec import Spec, load


@dataclass(frozen=True)
class Stated:
    """A stage of a spec as a program, with the sizes of its open dims."""

    spec: Spec
    program: Program
    sizes: dict[str, int]
    rows: dict[str, Op]

    def placed(self) -> Placed:
        """On the mesh of the plan."""
        return placement(self.spec.plan, self.program, mesh_of(self.spec.plan), self.sizes, self.rows)


def explained(path: str, name: str, overrides: Sequence[str] = (), stage: str | None = None) -> str:
    """Why the step or parameter `name` of a spec file lies where it does."""
    spec = load(path, overrides)
    mesh = mesh_of(spec.plan).inner
    if not mesh.axes:
        hint = "--set plan.mesh.tp=2, say"
        raise SpecError(Diagnostic("S521", "the plan has no mesh: one process has everything", None, hint))
    found = stated(spec, stage)
    return f"mesh {mesh}\n{explain(found.placed(), name, options_of(spec.plan), found.rows)}"


def stated(spec: Spec, name: str | None = None) -> Stated:
    """A stage of a spec (default: the first). Raises SpecError for what is wrong with its plan."""
    if mistakes := mesh_mistakes(spec):
        raise SpecError(*in_order(mistakes))
    if name is not None and name not in spec.stages:
        raise SpecError(Diagnostic("S302", f"no stage is called '{name}'", hint=did_you_mean(name, spec.stages)))
    if not spec.stages:
        raise SpecError(Diagnostic("S305", "there are no stages to place", spec.mark(()), "add 'stages:'"))
    stage = spec.stages[name or next(iter(spec.stages))]
    program, sizes = trained(elaborate(spec, stage.model, stage.objective), stage)
    return Stated(spec, program, sizes, dict(user_ops(spec, (), ())))
