"""What a person wants to know of a built stage: sizes, work and memory, from its program and its graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from specc.compiler.cost import n_params, program_cost
from specc.compiler.graphs import Graphs
from specc.compiler.lower.bodies import dtype_of
from specc.compiler.program import Call, Program
from specc.compiler.work import Work, graph_work, peak_bytes
from specc.spec.plan import PlanSpec
from specc.spec.stage import StageSpec

ADAM_BYTES = 4 + 3 + 1  # tensors of a parameter that a step of AdamW and of clipping reads and writes


@dataclass(frozen=True)
class StageFacts:
    """Bytes and FLOPs are of the whole stage on one device; `step` is the work of all graphs in an optimizer step."""

    name: str
    params: int
    trained: int
    flops_per_token: float
    memory: dict[str, int]
    bodies: dict[str, int]  # calls of each graph
    steps: int
    tokens: int
    step: Work
    graphs: Work  # of one call of each graph: what compiling takes follows from its nodes
    n_graphs: int
    compute: str


def facts_of(
    name: str, stage: StageSpec, plan: PlanSpec, program: Program, sizes: Mapping[str, int],
    lowered: Mapping[str, Graphs], calls: Sequence[Call], compute: torch.dtype,
) -> StageFacts:  # fmt: skip
    tokens = program.inputs["tokens"].numel(sizes) if "tokens" in program.inputs else 1
    bodies = Counter(c.body for c in calls)
    n, trained = n_params(program), n_params(program, trainable=True)
    master = 8 if plan.precision.master == "fp64" else 4
    each = {b: call_work(g) for b, g in lowered.items()}
    microbatches = stage.batch.sequences // (stage.batch.microbatch or stage.batch.sequences)
    step = Work()
    for body, times in bodies.items():
        step += each[body] * (times * microbatches)
    memory = {
        "weights": n * master + (n * compute.itemsize if compute.itemsize != master else 0),
        "gradients": trained * 4,
        "optimizer": trained * master * 2,
        "saved activations": saved_bytes(program, sizes, lowered, calls, compute),
        "work space": max(peak_bytes(gm) for g in lowered.values() for gm in (g.fwd, g.bwd) if gm is not None),
    }
    memory["peak"] = sum(memory.values())
    return StageFacts(
        name, n, trained, 3 * program_cost(program, sizes).flops / max(1, tokens), memory, dict(bodies),
        stage.steps(), stage.steps() * stage.batch.sequences * stage.data.seq_len,
        step + Work(0.0, float(trained * master * ADAM_BYTES), 1), sum(each.values(), Work()),
        sum((g.bwd is not None) + 1 for g in lowered.values()), plan.precision.compute,
    )  # fmt: skip


def call_work(g: Graphs) -> Work:
    """Forward and backward of one call."""
    return sum((graph_work(gm) for gm in (g.fwd, g.bwd) if gm is not None), Work())


def saved_bytes(
    program: Program, sizes: Mapping[str, int], lowered: Mapping[str, Graphs], calls: Sequence[Call],
    compute: torch.dtype,
) -> int:  # fmt: skip
    """What forward passes keep for the backward: their own values, and the values between calls, each once."""
    between: dict[str, int] = {}
    fresh = 0
    for call, whole in zip(calls, program.calls, strict=True):
        g, ins = lowered[call.body], program.bodies[whole.body].ins
        fresh += g.saved_bytes
        for i, (name, var) in enumerate(zip(call.ins, ins, strict=True)):
            if i in g.saved_from and name not in program.inputs:
                between[name] = var.type.numel(sizes) * dtype_of(var.type.dtype, compute).itemsize
    return fresh + sum(between.values())
