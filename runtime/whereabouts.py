"""Where a spec's steps and parameters lie on the mesh of its plan, and what other places would cost."""

from __future__ import annotations

from collections.abc import Sequence

from specc.compiler.foresight.choose import chosen
from specc.compiler.placement.explain import explain
from specc.compiler.placement.mesh import mesh_of, options_of
from specc.compiler.stated import stated
from specc.spec.errors import Diagnostic, SpecError
from specc.spec.spec import load


def explained(path: str, name: str, overrides: Sequence[str] = (), stage: str | None = None) -> str:
    """Why the step or parameter `name` of a spec file lies where it does."""
    spec = chosen(load(path, overrides))
    mesh = mesh_of(spec.plan).inner
    if not mesh.axes:
        hint = "--set plan.mesh.tp=2, say"
        raise SpecError(Diagnostic("S521", "the plan has no mesh: one process has everything", None, hint))
    found = stated(spec, stage)
    return f"mesh {mesh}\n{explain(found.placed(), name, options_of(spec.plan), found.rows)}"
