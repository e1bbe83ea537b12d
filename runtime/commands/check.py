"""`specc check`: everything that can be known without building, and without importing torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specc.compiler.cost import n_params
from specc.compiler.elaborate import elaborate
from specc.compiler.idle import idle
from specc.compiler.ops.user import user_ops
from specc.compiler.placement.mesh import mesh_mistakes
from specc.compiler.program import Program
from specc.compiler.training import axis_mistakes, parent_mistakes, training_mistakes
from specc.compiler.units import count
from specc.runtime.data.template import template_mistakes
from specc.runtime.terminal import show_error
from specc.spec.errors import Diagnostic, SpecError, in_order
from specc.spec.objective import Preference
from specc.spec.spec import Spec, examine
from specc.spec.stage import StageSpec

Asked = tuple[str, str, Preference | None]


def run(args: argparse.Namespace) -> int:
    """Check every spec, also behind one that is wrong; the exit code is 2 if any is."""
    reports: list[dict[str, Any]] = []
    for path in args.specs:
        try:
            report = {"spec": path, "ok": True, **check_file(Path(path), args.overrides)}
            if not args.json:
                print(f"{path}: ok: {summary(report)}")
        except SpecError as error:
            report = {"spec": path, "ok": False, "diagnostics": [as_data(d) for d in error.diagnostics]}
            if not args.json:
                sys.stdout.flush()
                show_error(error, sys.stderr)
        reports.append(report)
    if args.json:
        print(json.dumps(reports, indent=1))
    return 0 if all(r["ok"] for r in reports) else 2


def check_file(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Load, type and elaborate a spec; what it holds, in numbers. Raises all mistakes of its form and its meaning."""
    spec, mistakes = examine(path, overrides)
    found: dict[Asked, Program] = {}
    if spec is not None:
        mistakes += template_mistakes(spec)
        try:
            mistakes += (of_mesh := mesh_mistakes(spec))
            found = programs(spec)
            mistakes += [d for stage in of_stages(spec, found) for d in training_mistakes(spec, *stage)]
            mistakes += parent_mistakes(spec, dict(of_stages(spec, found)))
            if not of_mesh:
                own = user_ops(spec, (), ())
                mistakes += [d for stage in of_stages(spec, found) for d in axis_mistakes(spec, *stage, own)]
        except SpecError as e:
            mistakes += e.diagnostics
    if spec is not None and not mistakes:  # a name that is spelled wrong leaves another one unused
        mistakes += idle(spec)
    if mistakes or spec is None:
        raise SpecError(*in_order(mistakes))
    models = {p.name: p for p in found.values()}
    return {
        "models": {name: {"parameters": n_params(p), "blocks": list(p.bodies)} for name, p in models.items()},
        "stages": list(spec.stages),
    }


def programs(spec: Spec) -> dict[Asked, Program]:
    """The Program of every model for everything that a stage asks of it."""
    known = [*([spec.name] if spec.model is not None else []), *spec.models]
    wanted = [key for s in spec.stages.values() if (key := asked_by(spec, s))[0] in known]  # the loader reports others
    used = {name for name, *_ in wanted}
    wanted += [(name, "causal_lm", None) for name in known if name not in used]
    found: dict[Asked, Program] = {}
    mistakes: list[Diagnostic] = []
    for key in dict.fromkeys(wanted):
        try:
            found[key] = elaborate(spec, *key)
        except SpecError as e:
            mistakes += e.diagnostics
    if mistakes:
        raise SpecError(*in_order(mistakes))
    return found


def asked_by(spec: Spec, stage: StageSpec) -> Asked:
    """A stage's model, its objective, and the loss of pairs."""
    return stage.model or spec.model_section()[0], stage.objective, stage.asked


def of_stages(spec: Spec, found: dict[Asked, Program]) -> Iterator[tuple[str, Program]]:
    """Every stage whose model could be made, with its Program."""
    each = {name: found.get(asked_by(spec, stage)) for name, stage in spec.stages.items()}
    yield from ((name, program) for name, program in each.items() if program)


def summary(report: dict[str, Any]) -> str:
    models = [f"{name} {count(m['parameters'])} parameters" for name, m in report["models"].items()]
    stages = ", ".join(report["stages"])
    return "; ".join([*models, *([f"stages {stages}"] if stages else [])])


def as_data(d: Diagnostic) -> dict[str, Any]:
    """A diagnostic as JSON."""
    place = {k: v for k, v in asdict(d.mark).items() if k != "text"} if d.mark else {}
    related = [{"at": str(mark), "text": text} for mark, text in d.related]
    return {"code": d.code, "message": d.message, "hint": d.hint, **place, "related": related}
