"""What a person wants to know of a built stage: sizes, work and memory, from its program and its graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.cost import n_params, program_cost
from specc.compiler.graphs import Graphs
from specc.compiler.placement.placed import Placed
from specc.compiler.program import Call, Program
from specc.compiler.rank_memory import local_numel
from specc.compiler.schedule.memory import KINDS, Memory
from specc.compiler.work import Work, graph_work
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
    memory: dict[str, int]  # by kind at the fullest moment of a step, and their sum as `peak`
    bodies: dict[str, int]  # calls of each graph
    steps: int
    tokens: int
    step: Work
    graphs: Work  # of one call of each graph: what compiling takes follows from its nodes
    n_graphs: int
    compute: str


def facts_of(
    name: str, stage: StageSpec, plan: PlanSpec, program: Program, sizes: Mapping[str, int],
    lowered: Mapping[str, Graphs], calls: Sequence[Call], memory: Memory, placed: Placed | None = None,
) -> StageFacts:  # fmt: skip
    """With a placement, the work of graphs is that of one rank; `memory` is that of the fullest."""
    tokens = program.inputs["tokens"].numel(sizes) if "tokens" in program.inputs else 1
    bodies = Counter(c.body for c in calls)
    n, trained = n_params(program), n_params(program, trainable=True)
    moments = trained_numbers(placed) if placed else trained
    master = 8 if plan.precision.master == "fp64" else 4
    each = {b: call_work(g) for b, g in lowered.items()}
    microbatches = stage.batch.microbatches
    step = Work()
    for body, times in bodies.items():
        step += each[body] * (times * microbatches)
    return StageFacts(
        name, n, trained, 3 * program_cost(program, sizes).flops / max(1, tokens),
        {**{k: memory.fullest.most.get(k, 0) for k in KINDS}, "peak": memory.peak}, dict(bodies),
        stage.steps(), stage.steps() * stage.batch.sequences * stage.data.seq_len,
        step + Work(0.0, float(moments * master * ADAM_BYTES), 1), sum(each.values(), Work()),
        sum((g.bwd is not None) + 1 for g in lowered.values()), plan.precision.compute,
    )  # fmt: skip


def trained_numbers(placed: Placed) -> int:
    """Numbers of a rank's parts of the parameters that are trained."""
    params = placed.program.params
    return sum(local_numel(p.type, n, placed, {}) for n, p in params.items() if p.trainable)


def call_work(g: Graphs) -> Work:
    """Forward and backward of one call."""
    return sum((graph_work(gm) for gm in (g.fwd, g.bwd) if gm is not None), Work())
