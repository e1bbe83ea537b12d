"""One reference case through the lowered path: outputs, loss and gradients against the published implementation's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from specc.compiler.build import lower
from specc.compiler.elaborate import elaborate
from specc.compiler.graphs import Graphs
from specc.compiler.lower.run import bound_sizes
from specc.compiler.passes.prune import prune
from specc.compiler.program import Program
from specc.compiler.schedule.actions import one_rank
from specc.runtime.boxed import boxed
from specc.runtime.convert.names import from_checkpoint, links, to_checkpoint
from specc.runtime.executor import Compiled, Executor
from specc.runtime.init import initial
from specc.spec.names import NameTable, flat, load_names, looked_up
from specc.spec.spec import load
from tests.parity.inputs import value

TABLES = Path(__file__).parent / "tables"
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
SMALLEST = 1e-30  # a reference that is zero everywhere is compared by the absolute difference
# Below this many units of rounding of the case's largest gradient, a reference gradient is zero in exact arithmetic
# (that of a key's bias, say: softmax does not see it). Its error is then over the largest gradient. A table's
# `rounds` names a dtype to which the reference rounds on the way.
NOISE = 64


@dataclass(frozen=True)
class Result:
    """Relative errors of a case: the largest difference of a tensor over its largest entry."""

    case: str
    dtype: str
    outputs: dict[str, float]
    grads: dict[str, float]
    tolerance: float

    @property
    def passed(self) -> bool:
        return all(e <= self.tolerance for e in (*self.outputs.values(), *self.grads.values()))  # false for NaN


def tables() -> dict[str, dict[str, Any]]:
    """Tables by the name of the case that they are for."""
    read = [yaml.safe_load(p.read_text(encoding="utf-8")) for p in sorted(TABLES.glob("*.yaml"))]
    return {case: table for table in read for case in table["cases"]}


def run_case(folder: Path, table: Mapping[str, Any]) -> Result:
    """Build the case's model, give it the case's weights and inputs, and compare one step.

    The runs under `also` have other inputs and outputs; their gradients are not compared."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    io = load_file(folder / "io.safetensors")
    given = {k.removeprefix("in."): t for k, t in io.items() if k.startswith("in.")}
    given |= {k: v for k, v in meta.items() if isinstance(v, bool | int | float)}
    weights = load_file(folder / "weights.safetensors")
    compute = next(t.dtype for k, t in io.items() if k.startswith("out.") and t.is_floating_point())
    names = load_names(table["names"])
    program = program_of(names, meta["config"], table)
    shapes = {p: x.type.shape({}) for p, x in program.params.items()}
    found = links(names.rules(meta["config"]), shapes)
    known = from_checkpoint(found, weights, {p: x for p, x in shapes.items() if p not in names.initial}, names.ignore)
    for path in names.initial:
        init = program.params[path].init
        known[path] = initial(path, shapes[path], init.kind, init.args, seed=0)
    params = {n: t.to(compute) for n, t in known.items()}
    errors: dict[str, float] = {}
    grads: dict[str, Tensor] = {}
    for run in [table, *table.get("also", [])]:
        texts = {**table["inputs"], **run["inputs"]}
        inputs = {n: value(texts[n], given, t.dtype, compute) for n, t in program.inputs.items()}
        outputs, run_grads = step(program, inputs, params, compute)
        for ours, theirs in wanted(run, meta["config"], run is table).items():
            errors |= {theirs: error(outputs[ours], io[f"out.{theirs}"])} if f"out.{theirs}" in io else {}
        grads = grads or to_checkpoint(found, run_grads)
    theirs_grads = {k.removeprefix("grad."): t for k, t in io.items() if k.startswith("grad.")}
    largest = max((float(t.abs().max()) for t in theirs_grads.values()), default=0.0)
    noise = NOISE * torch.finfo(getattr(torch, table.get("rounds", "float64"))).eps
    noise = max(noise, NOISE * torch.finfo(compute).eps) * largest
    return Result(
        folder.name, str(compute).removeprefix("torch."), errors,
        {n: error(grads.get(n), t, noise, largest) for n, t in theirs_grads.items()}, TOLERANCE[compute],
    )  # fmt: skip


def wanted(run: Mapping[str, Any], config: Mapping[str, Any], loss: bool) -> dict[str, str]:
    """The case's name for each of our outputs; `{name: h1, when: n == 1}` is for configs that say so."""
    found = {"loss": "loss"} if loss else {}
    for ours, theirs in run["outputs"].items():
        if isinstance(theirs, str):
            found[ours] = theirs
        elif looked_up(theirs["when"], flat(config)):
            found[ours] = theirs["name"]
    return found


def program_of(names: NameTable, config: Mapping[str, Any], table: Mapping[str, Any]) -> Program:
    """The model at the case's sizes, with the outputs that are compared."""
    overrides = [*names.overrides(config), *(f"{k}={v}" for k, v in table.get("set", {}).items())]
    overrides += [f"model.masks.{n}={text}" for n, text in table.get("masks", {}).items()]
    path = Path(str(files("specc.spec.models") / f"{names.model}.yaml"))
    return prune(elaborate(load(path, overrides), None, table.get("objective")), list(table["outputs"]))


def step(
    program: Program, inputs: Mapping[str, Tensor], params: Mapping[str, Tensor], compute: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs (with the loss) and gradients of one step of the executor over the lowered graphs."""
    result = executor(program, inputs, compute).step(params, [inputs], [1.0])
    return {**result.outputs, "loss": result.losses[0]}, result.grads


def body_as_it_is(g: Graphs) -> Compiled:
    """A body's graphs as callables; they are taken over."""
    part = {n: boxed(gm) for n, gm in g.parts().items()}
    return Compiled(
        part["fwd"], part.get("bwd"), part.get("bwd_input"), part.get("bwd_weight"), g.n_outs, g.in_grads,
        g.param_grads, g.out_grads,
    )  # fmt: skip


def executor(program: Program, inputs: Mapping[str, Tensor], compute: torch.dtype, n_microbatches: int = 1) -> Executor:
    """The program lowered for inputs of these sizes."""
    graphs, calls = lower(program, bound_sizes(program, inputs), compute)
    bodies = {n: body_as_it_is(g) for n, g in graphs.items()}
    actions = one_rank(len(calls), n_microbatches, {i for i, c in enumerate(calls) if graphs[c.body].bwd is not None})
    trainable = frozenset(n for n, p in program.params.items() if p.trainable)
    return Executor(calls, bodies, actions, program.loss, program.outputs, trainable, compute, compute)


def error(ours: Tensor | None, theirs: Tensor, noise: float = 0.0, scale: float = 0.0) -> float:
    """The largest difference over the largest entry (over `scale`, if that is mere noise); infinite without ours."""
    if ours is None or ours.shape != theirs.shape:
        return float("inf")
    largest = float(theirs.abs().max())
    return float((ours - theirs).abs().max()) / max(largest if largest > noise else scale, SMALLEST)
