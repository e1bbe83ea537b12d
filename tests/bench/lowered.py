"""A model of the benchmarks, lowered: `main('{"dtype": "bf16"}', FOLDER)` leaves there what a step needs, as
`specc build` does in a process of its own, so that training holds nothing of the compiler's."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from specc.compiler.build import layout, lower, param_facts
from specc.compiler.elaborate import elaborate
from specc.compiler.graphs import Graphs, to_json
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.program import Call, Program
from specc.compiler.training import stage_sizes
from specc.spec.loader import load_text, put
from specc.spec.spec import Spec
from tests.bench.models import DTYPES, FACTS, Model, Setting

RUN = ("fwd", "bwd")  # the parts that a step of one process runs


def program_of(model: Model) -> Program:
    """What a stage would train."""
    document = load_text((files("specc.spec.models") / f"{model.library}.yaml").read_text(), f"{model.library}.yaml")
    sets = {f"dims.{n}": size for n, size in model.dims.items()} | dict(model.sets or {})
    for path, value in sets.items():
        put(document, f"model.{path}", value, None)
    spec = Spec.from_yaml(Spec.model_validate(document.data).to_yaml())
    return fuse_linear_cross_entropy(prune(elaborate(spec), []))


def lowered(setting: Setting, program: Program) -> tuple[dict[str, Graphs], tuple[Call, ...]]:
    """The graphs of the model's blocks, and their calls."""
    return lower(program, sizes_of(setting.row, program), DTYPES[setting.dtype])


def sizes_of(model: Model, program: Program) -> dict[str, int]:
    return stage_sizes(program, model.batch, {"": model.length})


def main(settings: str, folder: str) -> None:
    setting, out = Setting(**json.loads(settings)), Path(folder)
    program = program_of(setting.row)
    graphs, calls = lowered(setting, program)
    for name, g in graphs.items():
        for part in RUN:
            (out / f"{name}.{part}.json").write_text(to_json(g.parts()[part]), encoding="utf-8")
    facts = {
        "inputs": [*program.inputs], "loss": program.loss, "params": [param_facts(program, p) for p in program.params],
        "calls": [vars(c) for c in calls], "graphs": {name: layout(g) for name, g in graphs.items()},
    }  # fmt: skip
    (out / FACTS).write_text(json.dumps(facts), encoding="utf-8")
