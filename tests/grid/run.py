"""A model under a plan on real processes, and the same on one: losses and parameters after some optimizer steps."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from specc.compiler.build import layout as facts
from specc.compiler.build import lower
from specc.compiler.graphs import Graphs, to_json
from specc.compiler.lower.placed import zigzag
from specc.compiler.lower.placed_bodies import lower_placed
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.placement.place import place
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import Layout, Mesh
from specc.compiler.program import Call
from specc.compiler.schedule.actions import Action, one_of_mesh, one_rank
from specc.runtime.built import body_of
from specc.runtime.executor import Executor
from specc.runtime.groups import InputLayout, cut, cut_inputs, join, whole
from tests.grid.models import TRACERS, inputs_of, weights_of
from tests.grid.plans import PLANS

STEPS, MICROBATCHES, CLIP = 5, 2, 1.0


@dataclass(frozen=True)
class Case:
    model: str
    plan: str
    ranks: int
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        return f"{self.model} {self.plan} x{self.ranks} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Artifact:
    """What a build holds of a case: every rank runs the same."""

    case: Case
    graphs: Mapping[str, tuple[dict[str, object], dict[str, str]]]
    calls: Sequence[Call]
    actions: Sequence[Action]
    loss: str
    trainable: frozenset[str]
    mesh: Mesh
    params: Mapping[str, Layout]
    inputs: Mapping[str, InputLayout]


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


def placed_of(case: Case) -> Placed:
    tracer, plan = TRACERS[case.model], PLANS[case.plan]
    program = sink_masks(tracer.program()) if plan.sunk else tracer.program()
    return place(program, plan.mesh(case.ranks), tracer.sizes, plan.options)


def artifact(case: Case) -> Artifact:
    placed = placed_of(case)
    graphs, calls = lower_placed(placed, case.dtype)
    backward = {i for i, c in enumerate(calls) if graphs[c.body].bwd is not None}
    actions = one_of_mesh(
        len(calls), MICROBATCHES, backward, placed.gather_each_use, placed.reduce_each_microbatch
    )  # fmt: skip
    order = zigzag(placed)
    inputs = {
        n: InputLayout(at, tuple(order.get(d.of or d.name, 0) for d in placed.program.inputs[n].dims))
        for n, at in placed.inputs.items()
    }  # fmt: skip
    return Artifact(
        case, texts_of(graphs), calls, actions, placed.program.loss or "", trained(placed), placed.mesh, placed.params,
        inputs,
    )  # fmt: skip


def trained(placed: Placed) -> frozenset[str]:
    return frozenset(n for n, p in placed.program.params.items() if p.trainable)


def texts_of(graphs: Mapping[str, Graphs]) -> dict[str, tuple[dict[str, object], dict[str, str]]]:
    return {n: (facts(g), {p: to_json(gm) for p, gm in g.parts().items()}) for n, g in graphs.items()}


def reference(model: str, dtype: torch.dtype) -> Outcome:
    """On one process, by today's path: no mesh, no placement."""
    tracer = TRACERS[model]
    program = tracer.program()
    graphs, calls = lower(program, tracer.sizes, dtype)
    actions = one_rank(len(calls), MICROBATCHES, {i for i, c in enumerate(calls) if graphs[c.body].bwd is not None})
    bodies = {n: body_of(*each) for n, each in texts_of(graphs).items()}
    names = frozenset(n for n, p in program.params.items() if p.trainable)
    executor = Executor(calls, bodies, actions, program.loss, {}, names, dtype, dtype)
    params = weights_of(program, dtype)
    return train(executor, model, params, params, {}, None, dtype, names)


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
    coordinates = join(a.mesh, rank)
    bodies = {n: body_of(*each) for n, each in a.graphs.items()}
    dtype = a.case.dtype
    executor = Executor(a.calls, bodies, a.actions, a.loss, {}, a.trainable, dtype, dtype, coordinates)
    full = weights_of(TRACERS[a.case.model].program(), dtype)
    params = {n: cut(x, a.params[n], a.mesh, rank) for n, x in full.items()}
    made = train(executor, a.case.model, params, full, a.inputs, (a, rank), dtype, a.trainable)
    return Outcome(made.losses, {n: whole(x, a.params[n], a.mesh).detach() for n, x in made.params.items()})


def train(
    executor: Executor, model: str, params: dict[str, Tensor], full: Mapping[str, Tensor],
    inputs: Mapping[str, InputLayout], here: tuple[Artifact, int] | None, dtype: torch.dtype, names: frozenset[str],
) -> Outcome:  # fmt: skip
    """A few steps of AdamW with clipping over the mesh."""
    tracer = TRACERS[model]
    program = tracer.program()
    weights = [params[n] for n in sorted(names)]
    adam = torch.optim.AdamW(weights, lr=1e-2, eps=1e-4, weight_decay=0.1)
    losses: list[float] = []
    for i in range(STEPS):
        batches = [inputs_of(program, tracer.sizes, dtype, 100 * i + m) for m in range(MICROBATCHES)]
        shares = [1.0 / MICROBATCHES] * MICROBATCHES
        if here:
            batches = [cut_inputs(b, inputs, here[0].mesh, here[1]) for b in batches]
        result = executor.step(params, batches, shares)
        losses.append(sum(float(x) * w for x, w in zip(result.losses, shares, strict=True)))
        clip(result.grads, here[0] if here else None)
        for n in names:
            params[n].grad = result.grads[n].to(dtype)
        adam.step()
    return Outcome(losses, params)


def clip(grads: Mapping[str, Tensor], a: Artifact | None) -> None:
    """To a global norm; what several ranks have alike counts once."""
    total = torch.zeros((), dtype=torch.float64)
    for n in sorted(grads):
        alike = 1
        for at, axis in zip(a.params[n], a.mesh.axes, strict=True) if a else ():
            alike *= axis.size if at.kind != "S" else 1
        total += grads[n].double().square().sum() / alike
    if a:
        dist.all_reduce(total)
    norm = float(total.sqrt())
    if norm > CLIP:
        for g in grads.values():
            g.mul_(CLIP / (norm + 1e-6))


def error(ours: Outcome, theirs: Outcome) -> float:
    """The largest relative difference of a loss or of a parameter (over its largest entry)."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    for n, x in theirs.params.items():
        worst = max(worst, float((ours.params[n] - x).abs().max() / x.abs().max().clamp(min=1e-30)))
    return worst if worst == worst else float("inf")
