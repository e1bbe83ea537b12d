"""`specc build`: compile a spec to a directory, and say what it will take to run it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from specc.compiler.facts import StageFacts
from specc.compiler.foresight.choose import SOFTWARE
from specc.compiler.foresight.planned import predicted
from specc.compiler.kernels.emit import summary as kernel_summary
from specc.compiler.placement.mesh import mesh_of
from specc.compiler.report.text import flops
from specc.compiler.units import count, duration, size
from specc.runtime.built import Stage, open_build
from specc.runtime.compile import Decision
from specc.runtime.errors import RunError
from specc.runtime.make import build_files
from specc.runtime.train import check_inputs, slow_warmup
from specc.spec.spec import Spec, load


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    facts, out = build_files(args.spec, args.out, args.overrides, args.allow_ops)
    took = time.monotonic() - began
    stages = open_build(out).stages
    decisions = [stages[f.name].decide() for f in facts]
    if args.json:
        described = [{**asdict(f), "run": asdict(d)} for f, d in zip(facts, decisions, strict=True)]
        print(json.dumps({"build": str(out), "stages": described}, indent=1))
        return 0
    print(f"{out}: built in {duration(took)}\n\n{summary(facts, decisions, load(str(out / 'spec.yaml')))}\n")
    if kernels := kernel_summary(out / "kernels"):
        print(f"  {kernels}\n")
    for note in (note for f in facts for note in notes(stages[f.name])):
        print(f"  {note}\n")
    print(f"next: specc run {out}        look: {out}/report.html")
    return 0


def notes(stage: Stage) -> Iterator[str]:
    """What a stage's model and data do not do that one may expect of them."""
    try:
        check_inputs(stage)
    except RunError as e:
        yield f"{e}: it can be profiled and looked at, not run"
    if told := slow_warmup(stage):
        yield told
    if aside := stage.facts.get("left_aside"):
        yield f"'{stage.name}' has a loss of pairs: {' and '.join(aside)} of the model's cross_entropy has no effect"
    batch = stage.spec.batch
    if (where := stage.facts["pairs"]) and batch.microbatches > 1:
        among = f"the {batch.size} of a microbatch, not among the {batch.sequences} of a step"
        yield f"'{stage.name}' compares samples with each other ({where}): among {among}"
    if stage.spec.objective == "causal_lm" and {"tokens", "labels"} <= stage.fields and stage.refusal:
        yield f"'{stage.name}' predicts the next token and cannot write any: {stage.refusal}"


def steps(facts: Sequence[StageFacts], decisions: Sequence[Decision], spec: Spec) -> list[tuple[str, list[str]]]:
    """Seconds of steps: as foretold for the devices of the plan, or on this machine if it is for processors."""
    device = spec.plan.cluster.device
    seconds, where, there = [d.step_seconds for d in decisions], "here", "here"
    if device != "cpu" and not spec.ops:
        seconds = [predicted(spec, f.name, SOFTWARE).forecast.seconds for f in facts]
        where, there = f"on {mesh_of(spec.plan).size} x {device}", "there"
    return [
        (f"a step {where}", [duration(s) for s in seconds]),
        (f"all steps {there}", [duration(s * f.steps) for f, s in zip(facts, seconds, strict=True)]),
    ]


def summary(facts: Sequence[StageFacts], decisions: Sequence[Decision], spec: Spec) -> str:
    """A table with a column for each stage."""
    unit = " or ".join(dict.fromkeys(f.unit for f in facts))
    rows = [
        ("", [f.name for f in facts]),
        ("parameters", [count(f.params) for f in facts]),
        ("trained", [count(f.trained) for f in facts]),
        (f"FLOPs {'a' if unit.startswith('t') else 'an'} {unit}", [flops(f.flops_per_token) for f in facts]),
        ("steps", [f"{f.steps:,}" for f in facts]),
        (unit.replace(" or ", "s or ") + "s", [count(f.tokens) for f in facts]),
        ("FLOPs in all", [flops(f.flops_per_token * f.tokens) for f in facts]),
        *steps(facts, decisions, spec),
        ("compile", [f"{f.n_graphs} graphs" if d.compiled else "no" for f, d in zip(facts, decisions, strict=True)]),
    ]
    categories = dict.fromkeys(c for f in facts for c in f.memory)
    rows += [(c, [size(f.memory[c]) if c in f.memory else "-" for f in facts]) for c in categories]
    rows.append(("blocks", [", ".join(f"{n} x{k}" if k > 1 else n for n, k in f.bodies.items()) for f in facts]))
    wide = [max(len(cells[i]) for _, cells in rows) for i in range(len(facts))]
    left = max(len(name) for name, _ in rows)
    return "\n".join(
        f"  {name:{left}}  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(cells, wide, strict=True))
        for name, cells in rows
    )
