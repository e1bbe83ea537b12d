"""This process's place on a stage's mesh: what it holds, what it counts, and the words that all ranks agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specc.compiler.placement.types import Axis, Layout, Mesh, place_named
from specc.runtime.built import Stage
from specc.runtime.errors import RunError
from specc.runtime.groups import InputLayout, cut_inputs, join, whole
from specc.runtime.heartbeat import Pulse
from specc.runtime.init import initial
from specc.runtime.pieces import WHOLE, Sharding
from specc.runtime.team import ALONE, Team, say


@dataclass(frozen=True)
class Seat:
    """The ranks that work together, this one's parts, and its heartbeat."""

    team: Team = ALONE
    sharding: Sharding = WHOLE
    inputs: Mapping[str, InputLayout] = field(default_factory=dict)
    coordinates: tuple[Tensor, ...] = ()
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def leads(self) -> bool:
        """Whether this rank writes what is one for all: metrics, samples, what is done."""
        return self.team.rank == 0

    def cut(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of a batch that every rank has made alike."""
        mesh = self.sharding.mesh
        return cut_inputs(batch, self.inputs, mesh, self.sharding.rank) if mesh.axes else batch

    def owned(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Those that this rank counts, so that every element of the model is counted once."""
        return [n for n, t in tensors.items() if self.sharding.owns(n, t.ndim)]

    def wholes(self, params: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The whole parameters in a dtype, on rank 0; nothing on the others. All call it."""
        mesh = self.sharding.mesh
        found: dict[str, Tensor] = {}
        for name, t in params.items():
            x = whole(t.to(dtype), self.sharding.layout(name, t.ndim), mesh) if mesh.axes else t
            if self.leads:
                found[name] = x
        return found

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
    layouts = {p["path"]: layout_of(p["layout"]) for p in stage.params} if mesh.axes else {}
    inputs = {
        name: InputLayout(layout_of(at["layout"]), tuple(at["zigzag"]))
        for name, at in stage.facts.get("input_layouts", {}).items()
    }
    coordinates = tuple(join(mesh, team.rank)) if mesh.axes else ()
    return Seat(team, Sharding(mesh, layouts, team.rank), inputs, coordinates, pulse or Pulse())


def layout_of(words: list[str]) -> Layout:
    """`["S0", "R"]`, one for each axis."""
    return tuple(map(place_named, words))


def first_values(stage: Stage, seat: Seat, dtype: torch.dtype) -> dict[str, Tensor]:
    """This rank's parts of the first values of all parameters; they depend on no mesh."""
    found: dict[str, Tensor] = {}
    for p in stage.params:
        region = seat.sharding.region(p["path"], p["shape"])
        init = p["init"]
        made = initial(p["path"], p["shape"], init["kind"], init["args"], stage.spec.seed, p["fan_in"], region)
        found[p["path"]] = made.to(dtype)
        seat.pulse.touch()
    return found
