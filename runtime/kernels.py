"""Registers the ops of a build's kernels. A file is run only if it is what this specc writes for the build's spec."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from specc.compiler.build import trained
from specc.compiler.elaborate import elaborate
from specc.compiler.kernels.emit import sources
from specc.compiler.kernels.load import LIST, load_kernel
from specc.runtime.errors import RunError
from specc.spec.spec import load
from specc.spec.stage import StageSpec


def load_kernels(build: Path, stage: StageSpec, compute: torch.dtype) -> None:
    """The kernels that a stage's graphs may call, with the settings that passed for the plan's device."""
    rows = json.loads((build / "kernels" / LIST).read_text(encoding="utf-8"))
    program, sizes = trained(elaborate(load(build / "spec.yaml"), stage.model, stage.objective), stage)
    for name, made in sources(program, sizes, compute).items():
        file = build / "kernels" / f"{name}.py"
        if not file.is_file() or _code(file.read_text(encoding="utf-8")) != _code(made.source):
            raise RunError(f"{file} is not what this version of specc makes; build again")
        module = load_kernel(file)
        for f in rows[name]["figures"]:
            module.CHOSEN[f["kernel"]] = max(f["setting"], module.CHOSEN[f["kernel"]])


def _code(text: str) -> str:
    """A file without its comments of whole lines: they say where in the spec it comes from."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))
