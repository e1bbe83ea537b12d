"""Registers the ops of a build's kernels. A file is run only if it is what this specc writes for the build's spec."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from specc.compiler.build import placement
from specc.compiler.elaborate import elaborate_stage
from specc.compiler.kernels.emit import sources
from specc.compiler.kernels.load import LIST, load_kernel
from specc.compiler.kernels.made import Made
from specc.compiler.ops.user import user_ops
from specc.compiler.placement.mesh import mesh_of
from specc.compiler.training import trained
from specc.runtime.errors import RunError
from specc.spec.spec import Spec, load
from specc.spec.stage import StageSpec


def load_kernels(build: Path, stage: StageSpec, compute: torch.dtype) -> None:
    """The kernels that a stage's graphs may call, with the settings that passed for the plan's device."""
    rows = json.loads((build / "kernels" / LIST).read_text(encoding="utf-8"))
    for name, made in _wanted(load(build / "spec.yaml"), stage, compute).items():
        file = build / "kernels" / f"{name}.py"
        if not file.is_file() or _code(file.read_text(encoding="utf-8")) != _code(made.source):
            raise RunError(f"{file} is not what this version of specc makes; build again")
        module = load_kernel(file)
        for f in rows[name]["figures"]:
            module.CHOSEN[f["kernel"]] = max(f["setting"], module.CHOSEN[f["kernel"]])


def _wanted(spec: Spec, stage: StageSpec, compute: torch.dtype) -> dict[str, Made]:
    """The files that a build of the spec has, by name."""
    program, sizes = trained(elaborate_stage(spec, stage), stage)
    mesh = mesh_of(spec.plan)
    placed = placement(spec.plan, program, mesh, sizes, user_ops(spec, (), ())) if mesh.inner.axes else None
    return sources(placed or program, sizes, compute)


def _code(text: str) -> str:
    """A file without its comments of whole lines: they say where in the spec it comes from."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))
