"""A stage of training on the ranks of a pipeline: which calls each of them runs, in which order, and what it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.graphs import Graphs, node_type
from specc.compiler.program import Call
from specc.compiler.schedule.actions import Action, carried
from specc.compiler.schedule.expand import Stages, expand
from specc.compiler.schedule.schedules import pipeline
from specc.compiler.schedule.slots import Table
from specc.compiler.schedule.split import split
from specc.spec.errors import Diagnostic, SpecError

Sent = tuple[str, tuple[int, ...]]  # dtype and shape


@dataclass(frozen=True)
class Order:
    """How a plan runs a pipeline: its schedule, and when the parameters of a rank come and their gradients go.

    `is_carried` says that ranks keep parameters in parts (see compiler.graphs.Carry)."""

    kind: str
    ranks: int
    chunks: int | None
    microbatches: int
    is_carried: bool = False
    gather_each_use: bool = False
    reduce_each_microbatch: bool = False


@dataclass(frozen=True)
class Pipeline:
    """`actions` are those of each rank, `values` what a rank has of the values that are sent, `params` the ranks that
    have each parameter, `loss` the rank that makes the loss."""

    table: Table
    stages: Stages
    actions: tuple[tuple[Action, ...], ...]
    values: Mapping[str, Sent]
    params: Mapping[str, tuple[int, ...]]
    loss: int


def assemble(
    order: Order, calls: Sequence[Call], bodies: Mapping[str, Graphs], costs: Mapping[str, float], loss: str,
    trainable: frozenset[str],
) -> Pipeline:  # fmt: skip
    """`costs` are those of a call of each body; stages are runs of calls, the heaviest as light as can be."""
    table, where = pipeline(order.kind, order.ranks, order.microbatches, order.chunks)
    stages = Stages(stage_of_calls([costs[c.body] for c in calls], len(where)), where)
    params = ranks_of_params(calls, stages)
    shared = [Action("SHARE", value=p) for p, ranks in params.items() if len(ranks) > 1 and p in trainable]
    actions: list[tuple[Action, ...]] = []
    for rank, uses in enumerate(expand(table, stages, calls, bodies)):
        own = [a for a in shared if rank in params[a.value]]
        if order.is_carried:
            uses = carried(uses, order.gather_each_use, order.reduce_each_microbatch)
        else:
            uses = [Action("UNSHARD"), *uses, Action("REDUCE")]
        actions.append((*uses, *own, Action("STEP")))
    makes_loss = next(c for c, call in enumerate(calls) if loss in call.outs)
    return Pipeline(table, stages, tuple(actions), sent(actions, calls, bodies), params, stages.rank(makes_loss))


def stage_of_calls(costs: Sequence[float], n: int) -> tuple[int, ...]:
    """The stage of each call. Raises SpecError if there are more stages than calls."""
    if n > len(costs):
        text = f"the plan has {n} stages, and the model has {len(costs)} calls of blocks to share out among them"
        hint = "a smaller plan.mesh.pp or plan.schedule.chunks, or more tiles of a repeat"
        raise SpecError(Diagnostic("S527", text, None, hint))
    begins = [*split(costs, n), len(costs)]
    return tuple(s for s in range(n) for _ in range(begins[s], begins[s + 1]))


def ranks_of_params(calls: Sequence[Call], stages: Stages) -> dict[str, tuple[int, ...]]:
    found: dict[str, set[int]] = {}
    for c, call in enumerate(calls):
        for path in call.params:
            found.setdefault(path, set()).add(stages.rank(c))
    return {path: tuple(sorted(ranks)) for path, ranks in found.items()}


def sent(
    actions: Sequence[Sequence[Action]], calls: Sequence[Call], bodies: Mapping[str, Graphs]
) -> dict[str, Sent]:  # fmt: skip
    """What is sent as the graphs that take it have it."""
    names = {a.name for each in actions for a in each if a.kind == "SEND"}
    found: dict[str, Sent] = {}
    for call in calls:
        operands = bodies[call.body].fwd.graph.find_nodes(op="placeholder")
        for i, value in enumerate(call.ins):
            if value in names:
                dtype, shape, _ = node_type(operands[i])
                found[value] = dtype, tuple(shape)
    return found
