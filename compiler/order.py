"""The order of a stage: what each rank does in a step, which calls run forward again, and what that takes in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from specc.compiler.facts import call_work
from specc.compiler.graphs import Graphs
from specc.compiler.hardware.tables import capacity
from specc.compiler.placement.mesh import options_of
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.refuse import no_room
from specc.compiler.placement.types import Mesh
from specc.compiler.program import Call, Program
from specc.compiler.rank_memory import rank_memories, widths_of
from specc.compiler.schedule.actions import Action, one_of_mesh, one_rank
from specc.compiler.schedule.assemble import Order, Pipeline, assemble
from specc.compiler.schedule.footprint import footprints
from specc.compiler.schedule.memory import Memory
from specc.compiler.schedule.offload import offloaded
from specc.compiler.schedule.recompute import Recompute, choose, recomputed
from specc.spec.plan import PlanSpec
from specc.spec.stage import StageSpec

Lowered = tuple[Mapping[str, Graphs], Sequence[Call]]
SHARES = (1.0, 0.75, 0.5, 0.25)  # of the bytes that blocks would save: what `auto` tries


@dataclass(frozen=True)
class Ordered:
    """`actions` and `memories` are of each rank of the pipeline, or of all ranks if there is none.

    `recomputed` are the calls that keep nothing for their backward."""

    actions: Sequence[Sequence[Action]]
    memories: Sequence[Memory]
    recomputed: frozenset[int]
    pipe: Pipeline | None

    @property
    def fullest(self) -> Memory:
        return max(self.memories, key=lambda m: m.peak)


def fitted(
    plan: PlanSpec, mesh: Mesh, lower: Callable[[float], Lowered],
    order_of: Callable[[Mapping[str, Graphs], Sequence[Call], Recompute], Ordered],
) -> tuple[Mapping[str, Graphs], Sequence[Call], Ordered]:  # fmt: skip
    """A stage lowered and ordered as the plan says; if that is `auto`, so that it fits a rank with the least that is
    computed anew: blocks save less and less, in the end calls save nothing. Raises SpecError if it does not fit."""
    asked, limit = plan.recompute, capacity(plan.cluster)
    shares = SHARES if asked == "auto" else (asked,) if isinstance(asked, float) else (1.0,)
    for share in shares:
        graphs, calls = lower(share)
        kind: Recompute = "full" if asked == "full" else "auto" if (asked, share) == ("auto", SHARES[-1]) else "none"
        made = order_of(graphs, calls, kind)
        if made.fullest.peak <= limit:
            return graphs, calls, made
    raise no_room(made.fullest.peak, limit, mesh)


def order(
    plan: PlanSpec, stage: StageSpec, program: Program, mesh: Mesh, sizes: Mapping[str, int], placed: Placed | None,
    graphs: Mapping[str, Graphs], calls: Sequence[Call], kind: Recompute,
) -> Ordered:  # fmt: skip
    """The actions of each rank, with those calls run forward again that `kind` asks for, and their memory."""
    pipe = pipelined(plan, stage, program, mesh, calls, graphs, placed) if mesh.stages > 1 else None
    plain = pipe.actions if pipe else [in_turn(calls, graphs, stage.batch.microbatches, placed)]
    memories_of = partial(
        rank_memories, program, placed, sizes, calls, graphs, footprints(graphs),
        widths=widths_of(plan.precision), ema=stage.ema is not None,
        moments_on_host=plan.offload.optimizer, optimizer=stage.optimizer,
    )  # fmt: skip

    def away(actions: Sequence[Action]) -> list[Action]:
        return offloaded(actions, lambda c: graphs[calls[c].body].saved_bytes, plan.offload.activations)

    def peak(which: frozenset[int]) -> int:
        return max(m.peak for m in memories_of([away(recomputed(a, which)) for a in plain]))

    again = choose(kind, calls, graphs, capacity(plan.cluster), peak)
    actions = [away(recomputed(a, again)) for a in plain]
    return Ordered(actions, memories_of(actions), again, pipe)


def in_turn(
    calls: Sequence[Call], graphs: Mapping[str, Graphs], n_microbatches: int, placed: Placed | None
) -> list[Action]:  # fmt: skip
    """The actions of a rank that has all calls."""
    backward = {i for i, c in enumerate(calls) if graphs[c.body].bwd is not None}
    if placed is None:
        return one_rank(len(calls), n_microbatches, backward)
    return one_of_mesh(len(calls), n_microbatches, backward, placed.gather_each_use, placed.reduce_each_microbatch)


def pipelined(
    plan: PlanSpec, stage: StageSpec, program: Program, mesh: Mesh, calls: Sequence[Call],
    graphs: Mapping[str, Graphs], placed: Placed | None,
) -> Pipeline:  # fmt: skip
    """The calls shared out among the stages by the work of their graphs."""
    device = options_of(plan).device
    works = {n: call_work(g) for n, g in graphs.items()}
    costs = {n: w.flops / device.flops + w.bytes / device.bandwidth for n, w in works.items()}
    asked = Order(
        plan.schedule.kind, mesh.stages, plan.schedule.chunks, stage.batch.microbatches, placed is not None,
        placed is not None and placed.gather_each_use, placed is not None and placed.reduce_each_microbatch,
    )  # fmt: skip
    return assemble(asked, calls, graphs, costs, program.loss or "", program.trainable)
