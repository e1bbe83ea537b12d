"""This process's place on a stage's mesh: what it holds, what it counts, and the words that all ranks agree on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specc.compiler.graphs import dtype_named
from specc.compiler.lower.collectives import group_name
from specc.compiler.placement.types import Axis, Layout, Mesh, R, place_named
from specc.compiler.schedule.timeline import depths
from specc.runtime.allocator import lay_apart
from specc.runtime.built import Stage
from specc.runtime.device import CPU, here
from specc.runtime.errors import RunError
from specc.runtime.groups import InputLayout, cut, cut_inputs, join, whole
from specc.runtime.heartbeat import PATIENCE, Pulse
from specc.runtime.init import initial
from specc.runtime.pieces import WHOLE, Sharding
from specc.runtime.team import ALONE, Team, say
from specc.runtime.wire import Sent, Wire, to_first


@dataclass(frozen=True)
class Seat:
    """The ranks that work together, this one's parts, and its heartbeat.

    In a pipeline `wire` is this rank's end of its lines, `makes_loss` the first rank that has the loss, and `depths`
    say how far a rank is at each of its actions."""

    team: Team = ALONE
    sharding: Sharding = WHOLE
    inputs: Mapping[str, InputLayout] = field(default_factory=dict)
    coordinates: tuple[Tensor, ...] = ()
    pulse: Pulse = field(default_factory=Pulse)
    wire: Wire | None = None
    makes_loss: int = 0
    depths: tuple[int, ...] = ()
    device: torch.device = CPU

    @property
    def leads(self) -> bool:
        """Whether this rank writes what is one for all: metrics, samples, what is done."""
        return self.team.rank == 0

    def cut(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a batch that every rank has made alike, on its device."""
        mesh = self.sharding.mesh
        return self.moved(cut_inputs(batch, self.inputs, mesh, self.sharding.rank) if mesh.axes else batch)

    def kept(self, size: int) -> NDArray[np.bool_] | None:
        """Which of a microbatch's `size` samples this rank has a part of, of any input; None for all."""
        mesh, rank = self.sharding.mesh, self.sharding.rank
        if not mesh.axes:
            return None
        here = np.zeros(size, dtype=bool)
        for at in self.inputs.values():
            rows = tuple(p if p.kind == "S" and p.dim == 0 else R for p in at.layout)
            here[cut(torch.arange(size), rows, mesh, rank).numpy()] = True
        return here

    def moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the host on this rank's device."""
        return {n: x.to(self.device) for n, x in tensors.items()}

    def owned(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Those that this rank counts, so that every element of the model is counted once."""
        return [n for n, t in tensors.items() if self.sharding.owns(n, t.ndim)]

    def wholes(
        self, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], dtype: torch.dtype
    ) -> dict[str, Tensor]:  # fmt: skip
        """The whole tensors (parameters, or their gradients) in a dtype, on rank 0; nothing on the others.

        `shapes` are those of all wholes; a rank of a pipeline has some of them. All ranks call it."""
        found = {n: self._whole(tensors.get(n), n, (dtype, tuple(shape))) for n, shape in shapes.items()}
        return {n: x for n, x in found.items() if x is not None}

    def _whole(self, t: Tensor | None, name: str, kind: Sent) -> Tensor | None:
        """One of them; in a pipeline from the first rank that has it."""
        mesh, holder = self.sharding.mesh, self.sharding.first_holder(name)
        if not mesh.axes:
            return t
        x = None
        if self.sharding.rank // mesh.inner.size == holder:
            assert t is not None
            x = whole(t.to(kind[0]), self.sharding.layout(name, t.ndim), mesh)
        if holder:
            return to_first(x, holder * mesh.inner.size, self.sharding.rank, kind, self.device)
        return x if self.leads else None

    def whole_output(self, x: Tensor, layout: Sequence[str]) -> Tensor:
        """A value of the model, whole, from this rank's part, on the ranks of its stage of the pipeline."""
        mesh = self.sharding.mesh.inner
        return whole(x, layout_of(list(layout)), mesh) if mesh.axes else x

    def of_loss(self, *own: float) -> list[float]:
        """Numbers that only the ranks with the loss know, on all ranks."""
        found: list[float] = self.team.numbers(own)[self.makes_loss].tolist()
        return found

    def place(self, action: int) -> int:
        """How far the rank is in its step, as all ranks count."""
        return self.depths[action] if self.depths else action

    def lists(self, own: list[str]) -> list[str]:
        """What any rank says, each word once; with several ranks, which one says it."""
        every = say(self.team, own)
        if self.team.size == 1:
            return own
        return [f"{word} on rank {rank}" for rank, words in enumerate(every) for word in words]


def mesh_of_stage(stage: Stage) -> Mesh:
    """The mesh that the stage's graphs are of."""
    return Mesh(tuple(Axis(a["name"], a["size"], a["role"]) for a in stage.facts.get("mesh", [])))


def take_seat(stage: Stage, team: Team = ALONE, pulse: Pulse | None = None) -> Seat:
    """Join the groups of the stage's mesh. Raises RunError if there are not as many ranks as it has."""
    mesh = mesh_of_stage(stage)
    if mesh.size != team.size:
        raise RunError(f"'{stage.name}' was built for {mesh.size} processes ({mesh}), and this run has {team.size}")
    device = here()
    lay_apart()
    if not mesh.axes:
        return Seat(team, Sharding(mesh, {}), {}, (), pulse or Pulse(), device=device)
    outer = (R,) * (len(mesh.axes) - len(mesh.inner.axes))  # every rank of a pipeline would have the same
    layouts = {p["path"]: outer + layout_of(p.get("layout", [])) for p in stage.params}
    inputs = {
        name: InputLayout(outer + layout_of(at["layout"]), tuple(at["zigzag"]))
        for name, at in stage.facts["input_layouts"].items()
    }
    sharding = Sharding(mesh, layouts, team.rank, stage.pipeline.get("params", {}))
    at = tuple(join(mesh, team.rank, device, patience(pulse)))
    seat = Seat(team, sharding, inputs, at, pulse or Pulse(), device=device)
    if mesh.stages == 1:
        return seat
    wire = wire_of(stage, sharding, device)
    far = tuple(depths(stage.schedules, stage.calls)[wire.rank])
    return replace(seat, wire=wire, makes_loss=stage.pipeline["loss"] * mesh.inner.size, depths=far)


def patience(pulse: Pulse | None) -> timedelta | None:
    """Of a collective: our launcher finds a rank that hangs, with others torch does."""
    return PATIENCE if pulse is not None and pulse.page is not None else None


def wire_of(stage: Stage, sharding: Sharding, device: torch.device = CPU) -> Wire:
    """This rank's end of the pipeline's lines."""
    mesh = sharding.mesh
    values = {n: (dtype_named(dtype), tuple(shape)) for n, (dtype, shape) in stage.pipeline["values"].items()}
    axis = next(a for a in mesh.axes if a.role == "stages")
    shared = {path: ranks for path, ranks in sharding.holders.items() if len(ranks) > 1}
    rank = sharding.rank // mesh.inner.size
    return Wire(group_name(axis), rank, values, shared, stage.spec.batch.microbatches, device)


def layout_of(words: list[str]) -> Layout:
    """`["S0", "R"]`, one for each axis."""
    return tuple(map(place_named, words))


def first_values(
    stage: Stage, seat: Seat, dtype: torch.dtype | None = None, only: Collection[str] | None = None
) -> dict[str, Tensor]:  # fmt: skip
    """This rank's parts of the first values of all parameters (or of some), on its device; they depend on no mesh.

    Without a `dtype` they are as the stage keeps them."""
    found: dict[str, Tensor] = {}
    for p in stage.params:
        if not seat.sharding.holds(p["path"]) or (only is not None and p["path"] not in only):
            continue
        region = seat.sharding.region(p["path"], p["shape"])
        init = p["init"]
        made = initial(p["path"], p["shape"], init["kind"], init["args"], stage.spec.seed, p["fan_in"], region)
        found[p["path"]] = made.to(seat.device, dtype or stage.dtype(p["path"]))
        seat.pulse.touch()
    return found
