"""specc.build: compile a spec into a build directory, with its page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specc.compiler.build import build_spec
from specc.compiler.facts import StageFacts
from specc.compiler.foresight.choose import chosen
from specc.compiler.idle import idle
from specc.compiler.placement.mesh import mesh_mistakes
from specc.compiler.report import render
from specc.compiler.report.gather import read_build
from specc.runtime.built import Build, open_build
from specc.runtime.data.template import template_mistakes
from specc.spec.errors import SpecError, in_order
from specc.spec.spec import Spec, load

SpecLike = Spec | str | Path


def build(
    spec: SpecLike, out: str | Path | None = None, overrides: Sequence[str] = (), allow_ops: bool = False
) -> Build:
    """Compile a spec (or a spec file, with overrides such as "model.dims.L=4") into `out`, by default build/NAME.

    `allow_ops` says that the Python files under the spec's `ops:` are trusted: building runs them."""
    return open_build(build_files(spec, out, overrides, allow_ops)[1])


def build_files(
    spec: SpecLike, out: str | Path | None, overrides: Sequence[str], allow_ops: bool
) -> tuple[list[StageFacts], Path]:
    """Write a build with its page; what a person wants to know of it, and where it is."""
    found = spec if isinstance(spec, Spec) else load(spec, overrides)
    if isinstance(spec, Spec) and overrides:
        found = spec.changed(*overrides)
    if mistakes := mesh_mistakes(found) or [*template_mistakes(found), *idle(found)]:
        raise SpecError(*in_order(mistakes))
    found = chosen(found)
    target = Path(out or f"build/{found.name}")
    facts = build_spec(found, target, allow_ops)
    (target / "report.html").write_text(render(read_build(target)), encoding="utf-8")
    return facts, target
