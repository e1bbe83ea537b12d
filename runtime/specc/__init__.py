"""specc: a declarative compiler for training language and multimodal models.

`load` or write a `Spec`, `build` it, `run` the build, `sample` from it, `export` it. Names are imported when they are
used, so that `import specc` costs nothing and torch is imported by what builds and runs alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specc.compiler.ops.user import op
    from specc.runtime.api import export, run, sample
    from specc.runtime.built import Build
    from specc.runtime.errors import RunError
    from specc.runtime.make import build
    from specc.spec.data import DataSpec, Source, TokenizerSpec
    from specc.spec.errors import Diagnostic, SpecError
    from specc.spec.model import Attribute, Block, ModelSpec, NameRule, Step, step
    from specc.spec.optimizer import SGD, Lion, Muon, Optimizer, ParamGroup
    from specc.spec.plan import Cluster, PlanSpec, Precision
    from specc.spec.spec import Spec, library_model, load
    from specc.spec.stage import Batch, Budget, Checkpoint, Eval, Sample, Schedule, StageSpec, Weights

_WHERE = {
    "specc.compiler.ops.user": ("op",),
    "specc.runtime.api": ("export", "run", "sample"),
    "specc.runtime.built": ("Build",),
    "specc.runtime.errors": ("RunError",),
    "specc.runtime.make": ("build",),
    "specc.spec.data": ("DataSpec", "Source", "TokenizerSpec"),
    "specc.spec.errors": ("Diagnostic", "SpecError"),
    "specc.spec.model": ("Attribute", "Block", "ModelSpec", "NameRule", "Step", "step"),
    "specc.spec.optimizer": ("SGD", "Lion", "Muon", "Optimizer", "ParamGroup"),
    "specc.spec.plan": ("Cluster", "PlanSpec", "Precision"),
    "specc.spec.spec": ("Spec", "library_model", "load"),
    "specc.spec.stage": (
        "Batch", "Budget", "Checkpoint", "Eval", "Sample", "Schedule", "StageSpec", "Weights",
    ),
}  # fmt: skip
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "SGD",
    "Attribute",
    "Batch",
    "Block",
    "Budget",
    "Build",
    "Checkpoint",
    "Cluster",
    "DataSpec",
    "Diagnostic",
    "Eval",
    "Lion",
    "ModelSpec",
    "Muon",
    "NameRule",
    "Optimizer",
    "ParamGroup",
    "PlanSpec",
    "Precision",
    "RunError",
    "Sample",
    "Schedule",
    "Source",
    "Spec",
    "SpecError",
    "StageSpec",
    "Step",
    "TokenizerSpec",
    "Weights",
    "build",
    "export",
    "library_model",
    "load",
    "op",
    "run",
    "sample",
    "step",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'specc' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
