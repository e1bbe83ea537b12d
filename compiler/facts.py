"""What a person wants to know of a built stage: sizes, work and memory, from its program and its graphs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch

from specc.compiler.cost import n_params, program_cost
from specc.compiler.graphs import Graphs, node_type, tensor_bytes
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import local_shape
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
    lowered: Mapping[str, Graphs], calls: Sequence[Call], compute: torch.dtype, placed: Placed | None = None,
) -> StageFacts:  # fmt: skip
    """With a placement, memory and the work of graphs are those of one rank."""
    tokens = program.inputs["tokens"].numel(sizes) if "tokens" in program.inputs else 1
    bodies = Counter(c.body for c in calls)
    n, trained = n_params(program), n_params(program, trainable=True)
    kept, moments = (kept_params(placed, t) if placed else m for t, m in ((False, n), (True, trained)))
    master = 8 if plan.precision.master == "fp64" else 4
    each = {b: call_work(g) for b, g in lowered.items()}
    microbatches = stage.batch.microbatches
    step = Work()
    for body, times in bodies.items():
        step += each[body] * (times * microbatches)
    memory = {
        "weights": kept * master + (kept * compute.itemsize if compute.itemsize != master else 0),
        "gradients": moments * 4,
        "optimizer": moments * master * 2,
        "saved activations": saved_bytes(program.inputs, lowered, calls),
        "work space": max(peak_bytes(gm) for g in lowered.values() for gm in (g.fwd, g.bwd) if gm is not None),
    }
    memory["peak"] = sum(memory.values())
    return StageFacts(
        name, n, trained, 3 * program_cost(program, sizes).flops / max(1, tokens), memory, dict(bodies),
        stage.steps(), stage.steps() * stage.batch.sequences * stage.data.seq_len,
        step + Work(0.0, float(moments * master * ADAM_BYTES), 1), sum(each.values(), Work()),
        sum((g.bwd is not None) + 1 for g in lowered.values()), plan.precision.compute,
    )  # fmt: skip


def kept_params(placed: Placed, trainable: bool) -> int:
    """Numbers of the parameters that a rank keeps between steps."""
    params = placed.program.params
    return sum(
        math.prod(local_shape(p.type.shape({}), placed.params[n], placed.mesh))
        for n, p in params.items() if p.trainable or not trainable
    )  # fmt: skip


def call_work(g: Graphs) -> Work:
    """Forward and backward of one call."""
    return sum((graph_work(gm) for gm in (g.fwd, g.bwd) if gm is not None), Work())


def saved_bytes(inputs: Container[str], lowered: Mapping[str, Graphs], calls: Sequence[Call]) -> int:
    """What forward passes keep for the backward: their own values, and the values between calls, each once."""
    between: dict[str, int] = {}
    fresh = 0
    for call in calls:
        g = lowered[call.body]
        fresh += g.saved_bytes
        operands = g.fwd.graph.find_nodes(op="placeholder")
        for i, name in enumerate(call.ins):
            if i in g.saved_from and name not in inputs:
                between[name] = tensor_bytes(node_type(operands[i]))
    return fresh + sum(between.values())
