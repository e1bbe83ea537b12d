"""What a person wants to know of a built stage: sizes, work and memory, from its program and its graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.cost import n_params, program_cost
from specc.compiler.graphs import Graphs
from specc.compiler.program import Call, Program
from specc.compiler.schedule.actions import Action, graph_calls
from specc.compiler.schedule.ledger import HOST
from specc.compiler.schedule.memory import KINDS, Memory
from specc.compiler.work import Work, graph_work
from specc.spec.plan import PlanSpec
from specc.spec.stage import StageSpec


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
    optimizer: Work  # of that, what updating takes
    graphs: Work  # of one call of each graph: what compiling takes follows from its nodes
    n_graphs: int
    compute: str
    unit: str = "token"  # or image


def facts_of(
    name: str, stage: StageSpec, plan: PlanSpec, program: Program, sizes: Mapping[str, int],
    lowered: Mapping[str, Graphs], calls: Sequence[Call], schedules: Sequence[Sequence[Action]], memory: Memory,
) -> StageFacts:  # fmt: skip
    """On a mesh, the work of graphs is that of one rank; in a pipeline (`schedules` are the actions of its ranks) that
    of the rank with most of it. `memory` is that of the fullest."""
    tokens = program.inputs["tokens"].numel(sizes) if "tokens" in program.inputs else 1
    tokens = stage.batch.size if stage.of_images else tokens
    bodies = Counter(c.body for c in calls)
    n, trained = n_params(program), n_params(program, trainable=True)
    most = {**memory.fullest.most, HOST: memory.on_host}
    optimizer = Work(memory.update.flops, float(memory.update.moved), 1)
    return StageFacts(
        name, n, trained, 3 * program_cost(program, sizes).flops / max(1, tokens),
        {**{k: most.get(k, 0) for k in KINDS if most.get(k) or k != HOST}, "peak": memory.peak}, dict(bodies),
        stage.steps(), stage.steps() * stage.units,
        step_work(lowered, calls, schedules) + optimizer, optimizer, sum(map(call_work, lowered.values()), Work()),
        sum((g.bwd is not None) + 1 for g in lowered.values()), plan.precision.compute, stage.unit,
    )  # fmt: skip


def step_work(lowered: Mapping[str, Graphs], calls: Sequence[Call], schedules: Sequence[Sequence[Action]]) -> Work:
    """The work of a step on the rank that has most."""
    each = {(n, part): graph_work(gm) for n, g in lowered.items() for part, gm in g.parts().items()}

    def of(actions: Sequence[Action]) -> Work:
        return sum((each[key] * n for key, n in graph_calls(actions, calls).items()), Work())

    return max(map(of, schedules), key=lambda w: (w.flops, w.bytes))


def call_work(g: Graphs) -> Work:
    """Forward and backward of one call."""
    return sum((graph_work(gm) for gm in (g.fwd, g.bwd) if gm is not None), Work())
