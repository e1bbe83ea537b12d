"""A model under a plan on real processes, and the same on one: losses and parameters after some optimizer steps."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specc.compiler.build import layout as facts
from specc.compiler.build import lower, lowered
from specc.compiler.graphs import Graphs, dtype_named, to_json
from specc.compiler.kernels.emit import Cuts, impl
from specc.compiler.kernels.load import load_kernel
from specc.compiler.lower.placed import zigzag
from specc.compiler.moments import orthogonalised
from specc.compiler.order import in_turn
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.placement.place import place
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import Layout, Mesh, R
from specc.compiler.program import Call, Program
from specc.compiler.rank_memory import Widths, rank_memories
from specc.compiler.schedule.actions import Action
from specc.compiler.schedule.assemble import Order, Pipeline, assemble
from specc.compiler.schedule.footprint import footprints
from specc.compiler.schedule.offload import offloaded
from specc.compiler.schedule.recompute import recomputed
from specc.runtime.built import body_of
from specc.runtime.executor import Executor
from specc.runtime.groups import InputLayout, cut, join
from specc.runtime.loop import mean_loss
from specc.runtime.optimizer import Updater, scale, squares
from specc.runtime.pieces import Sharding
from specc.runtime.seat import Seat
from specc.runtime.team import Processes
from specc.runtime.wire import Wire
from specc.spec.optimizer import OptimizerSpec
from specc.spec.stage import StageSpec
from tests.grid.models import TRACERS, inputs_of, weights_of
from tests.grid.plans import PLANS, Plan

STEPS, CLIP = 5, 1.0
# At 1e-2 rounding errors grow: one process in fp32 then ends up to 7e-5 from fp64, by the inputs. Even so, tokens
# whose experts tie within rounding can be sent elsewhere in fp32: other inputs than these may differ more in MoE.
LR = 3e-3


OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "muon": {"lr": LR, "eps": 1e-4}, "lion": {"lr": LR / 10}, "sgd": {"lr": 10 * LR, "nesterov": True},
}  # fmt: skip
STAGE = {"data": {"sources": [{"corpus": "python-stdlib"}]}, "budget": {"steps": STEPS}}


@dataclass(frozen=True)
class Case:
    model: str
    plan: str
    ranks: int
    dtype: torch.dtype = torch.float64
    kernels: bool = False  # graphs call those of the models, in torch's form
    optimizer: str = ""  # a kind; default: torch's AdamW

    def __str__(self) -> str:
        words = f"{self.model} {self.plan} x{self.ranks} {str(self.dtype).removeprefix('torch.')}"
        words = f"{words} {self.optimizer}" if self.optimizer else words
        return f"{words} kernels" if self.kernels else words


@dataclass(frozen=True)
class Artifact:
    """What a build holds of a case: every rank runs the same, in a pipeline each the actions of its stages."""

    case: Case
    graphs: Mapping[str, tuple[dict[str, object], dict[str, str]]]
    calls: Sequence[Call]
    actions: Sequence[Sequence[Action]]
    loss: str
    trainable: frozenset[str]
    mesh: Mesh
    params: Mapping[str, Layout]
    inputs: Mapping[str, InputLayout]
    pipe: Pipeline | None
    peaks: Sequence[int]  # predicted bytes of each rank of the pipeline, on its device and its host
    sources: Mapping[str, str]  # of the kernels that graphs call


@dataclass(frozen=True)
class Outcome:
    losses: list[float]
    params: dict[str, Tensor]


@dataclass(frozen=True)
class Sent:
    """An outcome on its way to another process: arrays, since a tensor's memory would go with its process."""

    losses: list[float]
    params: dict[str, np.ndarray[Any, Any]]

    def outcome(self) -> Outcome:
        return Outcome(self.losses, {n: torch.from_numpy(x) for n, x in self.params.items()})


def artifact(case: Case) -> Artifact:
    tracer, plan = TRACERS[case.model], PLANS[case.plan]
    program = sink_masks(tracer.program()) if plan.sunk or case.kernels else tracer.program()
    mesh, names = plan.mesh(case.ranks), program.trainable
    placed = place(program, mesh.inner, tracer.sizes, plan.options) if mesh.inner.axes else None
    made: dict[str, str] = {}
    whole: Program | Placed = placed or program
    if case.kernels:
        found = Cuts(whole, tracer.sizes, case.dtype)
        whole, made = found.applied(set()), {n: m.source for c in found.cuts.values() for n, m in c.made.items()}
        registered(made)
    graphs, calls = lowered(whole, tracer.sizes, case.dtype, {n: impl(n) for n in made}, plan.share)
    pipe = pipelined(plan, mesh, placed, calls, graphs, program.loss or "", names) if mesh.stages > 1 else None
    outer = (R,) * (len(mesh.axes) - len(mesh.inner.axes))
    order = zigzag(placed) if placed else {}
    inputs = {
        n: InputLayout(
            outer + (placed.inputs[n] if placed else ()), tuple(order.get(d.of or d.name, 0) for d in t.dims)
        )
        for n, t in program.inputs.items()
    }  # fmt: skip
    params = {n: outer + (placed.params[n] if placed else ()) for n in program.params}
    actions: Sequence[Sequence[Action]] = pipe.actions if pipe else [in_turn(calls, graphs, plan.microbatches, placed)]
    if plan.recompute:
        actions = [recomputed(each, range(len(calls))) for each in actions]
    actions = [offloaded(each, lambda c: graphs[calls[c].body].saved_bytes, plan.offload) for each in actions]
    width = case.dtype.itemsize
    memories = rank_memories(
        program, placed, tracer.sizes, calls, graphs, footprints(graphs), actions,
        widths=Widths(width, width, width), optimizer=spec_of(case.optimizer),
    )  # fmt: skip
    return Artifact(
        case, texts_of(graphs), calls, actions, program.loss or "", names, mesh, params, inputs, pipe,
        [max(sum(m.most.values()) for m in memory.moments) for memory in memories], made,
    )  # fmt: skip


def registered(sources: Mapping[str, str]) -> None:
    """Register the ops of kernels in this process."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in sources.items():
            (Path(folder) / f"{name}.py").write_text(text)
            load_kernel(Path(folder) / f"{name}.py")


def pipelined(
    plan: Plan, mesh: Mesh, placed: Placed | None, calls: Sequence[Call], graphs: Mapping[str, Graphs], loss: str,
    names: frozenset[str],
) -> Pipeline:  # fmt: skip
    each_use, each_microbatch = (placed.gather_each_use, placed.reduce_each_microbatch) if placed else (False, False)
    order = Order(
        plan.schedule, mesh.stages, None, plan.microbatches, placed is not None, each_use, each_microbatch
    )  # fmt: skip
    costs = {n: float(len(g.fwd.graph.nodes)) for n, g in graphs.items()}
    return assemble(order, calls, graphs, costs, loss, names)


def texts_of(graphs: Mapping[str, Graphs]) -> dict[str, tuple[dict[str, object], dict[str, str]]]:
    return {n: (facts(g), {p: to_json(gm) for p, gm in g.parts().items()}) for n, g in graphs.items()}


def reference(model: str, dtype: torch.dtype, microbatches: int, optimizer: str = "") -> Outcome:
    """On one process: no mesh, no placement."""
    tracer = TRACERS[model]
    program = tracer.program()
    graphs, calls = lower(program, tracer.sizes, dtype)
    bodies = {n: body_of(*each) for n, each in texts_of(graphs).items()}
    names, actions = program.trainable, in_turn(calls, graphs, microbatches, None)
    executor = Executor(calls, bodies, actions, program.loss, {}, names, dtype, dtype)
    return train(executor, model, weights_of(program, dtype), Seat(), microbatches, names, optimizer)


def on_rank(rank: int, cases: Sequence[Artifact]) -> list[Sent | str]:
    """All cases on this rank, one after the other; an error as text."""
    found: list[Sent | str] = []
    for a in cases:
        try:
            made = run_artifact(a, rank)
            found.append(Sent(made.losses, {n: x.numpy() for n, x in made.params.items()} if rank == 0 else {}))
        except Exception:  # reported by the parent
            found.append(traceback.format_exc())
    return found


def run_artifact(a: Artifact, rank: int) -> Outcome:
    seat, executor, params = ready(a, rank)
    microbatches = PLANS[a.case.plan].microbatches
    made = train(executor, a.case.model, params, seat, microbatches, a.trainable, a.case.optimizer)
    shapes = {n: p.type.shape({}) for n, p in TRACERS[a.case.model].program().params.items()}
    return Outcome(made.losses, seat.wholes(made.params, shapes, a.case.dtype))


def ready(a: Artifact, rank: int) -> tuple[Seat, Executor, dict[str, Tensor]]:
    """A rank's place, its executor, and its parts of the first parameters."""
    seat = seat_of(a, rank)
    registered(a.sources)
    bodies = {n: body_of(*each) for n, each in a.graphs.items()}
    dtype = a.case.dtype
    actions = a.actions[seat.wire.rank if seat.wire else 0]
    executor = Executor(
        a.calls, bodies, actions, a.loss, {}, a.trainable, dtype, dtype, seat.coordinates, seat.wire
    )  # fmt: skip
    full = weights_of(TRACERS[a.case.model].program(), dtype)
    params = {n: cut(x, a.params[n], a.mesh, rank) for n, x in full.items() if seat.sharding.holds(n)}
    return seat, executor, params


def seat_of(a: Artifact, rank: int) -> Seat:
    coordinates = tuple(join(a.mesh, rank))
    holders = a.pipe.params if a.pipe else {}
    sharding = Sharding(a.mesh, a.params, rank, holders)
    if a.pipe is None:
        return Seat(Processes(), sharding, a.inputs, coordinates)
    values = {n: (dtype_named(dtype), shape) for n, (dtype, shape) in a.pipe.values.items()}
    shared = {path: ranks for path, ranks in holders.items() if len(ranks) > 1}
    wire = Wire("specc_pp", rank // a.mesh.inner.size, values, shared, PLANS[a.case.plan].microbatches)
    return Seat(
        Processes(), sharding, a.inputs, coordinates, wire=wire, makes_loss=a.pipe.loss * a.mesh.inner.size
    )  # fmt: skip


def train(
    executor: Executor, model: str, params: dict[str, Tensor], seat: Seat, microbatches: int, names: frozenset[str],
    optimizer: str = "",
) -> Outcome:  # fmt: skip
    """A few steps of an optimizer with clipping over the mesh."""
    tracer, dtype = TRACERS[model], executor.compute
    program = tracer.program()
    own = sorted(names & set(params))
    step = updater(optimizer, program, {n: params[n] for n in own}, seat, dtype)
    losses: list[float] = []
    for i in range(STEPS):
        batches = [seat.cut(inputs_of(program, tracer.sizes, dtype, 100 * i + m)) for m in range(microbatches)]
        shares = [1.0 / microbatches] * microbatches
        result = executor.step(params, batches, shares)
        losses.append(seat.of_loss(mean_loss(result, shares))[0])
        squared = seat.team.numbers([squares(result.grads, seat.owned(result.grads))]).sum()
        scale(result.grads, float(squared.sqrt()), CLIP)
        step(result.grads)
    return Outcome(losses, {n: x.detach() for n, x in params.items()})


def spec_of(kind: str) -> OptimizerSpec:
    """The settings of a kind; of none AdamW's."""
    chosen = {"kind": kind, **OPTIMIZERS[kind]} if kind else {}
    return StageSpec.model_validate({**STAGE, "optimizer": chosen}).optimizer


def updater(
    kind: str, program: Program, params: Mapping[str, Tensor], seat: Seat, dtype: torch.dtype
) -> Callable[[Mapping[str, Tensor]], None]:  # fmt: skip
    """A step of an optimizer: torch's AdamW, or one of ours."""
    if kind:
        spec = spec_of(kind)
        ours = Updater(spec, params, False, orthogonalised(spec, program), seat.sharding, dtype)
        return lambda grads: ours.step(grads, spec.lr)
    adam = torch.optim.AdamW(params.values(), lr=LR, eps=1e-4, weight_decay=0.1)

    def step(grads: Mapping[str, Tensor]) -> None:
        for n, p in params.items():
            p.grad = grads[n].to(dtype)
        adam.step()

    return step


def error(ours: Outcome, theirs: Outcome) -> float:
    """The largest relative difference of a loss or of a parameter (over its largest entry)."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    for n, x in theirs.params.items():
        worst = max(worst, float((ours.params[n] - x).abs().max() / x.abs().max().clamp(min=1e-30)))
    return worst if worst == worst else float("inf")
