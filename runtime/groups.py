"""Process groups under the names that graphs use, and values cut into ranks' parts and made whole again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from specc.compiler.lower.collectives import all_gather, all_reduce, group_name
from specc.compiler.lower.named_groups import register
from specc.compiler.placement.types import Layout, Mesh, part
from specc.runtime.device import CPU


def join(mesh: Mesh, rank: int, device: torch.device = CPU, patience: timedelta | None = None) -> list[Tensor]:
    """Make this rank's group along each axis known by its name; the rank's coordinates as graphs take them: those along
    axes that split dims.

    Every rank of the mesh calls it, after `init_process_group`. `patience` is a collective's (default: torch's)."""
    for a, axis in enumerate(mesh.axes):
        # Only its members meet.
        group = dist.new_group(mesh.group(a, rank), timeout=patience, use_local_synchronization=True)
        register(group_name(axis), group)
    return coordinates(mesh, rank, device)


def coordinates(mesh: Mesh, rank: int, device: torch.device = CPU) -> list[Tensor]:
    at = zip(mesh.coordinates(rank), mesh.axes, strict=True)
    return [torch.tensor([c], device=device) for c, axis in at if axis.role != "stages"]


def cut(x: Tensor, layout: Layout, mesh: Mesh, rank: int) -> Tensor:
    """A rank's part of a whole value, which does not keep the whole alive."""
    own = x[part(x.shape, layout, mesh, rank)]
    return x.contiguous() if own.shape == x.shape else own.clone(memory_format=torch.contiguous_format)


def whole(x: Tensor, layout: Layout, mesh: Mesh) -> Tensor:
    """The whole value, on every rank of the mesh, from the ranks' parts (or parts of its sum)."""
    for place, axis in reversed(list(zip(layout, mesh.axes, strict=True))):
        if place.kind == "S":
            x = all_gather(x, place.dim, axis)
        elif place.kind == "P":
            x = all_reduce(x, axis)
    return x


@dataclass(frozen=True)
class InputLayout:
    """How an input lies; `zigzag` has for each dim the number of ranks in whose zigzag it lies (0: in order)."""

    layout: Layout
    zigzag: tuple[int, ...]


def cut_inputs(
    batch: Mapping[str, Tensor], inputs: Mapping[str, InputLayout], mesh: Mesh, rank: int
) -> dict[str, Tensor]:  # fmt: skip
    """A rank's part of a whole batch. Sequences in zigzag are put into that order first."""
    found: dict[str, Tensor] = {}
    for name, x in batch.items():
        for dim, ranks in enumerate(inputs[name].zigzag):
            if ranks:
                x = x.index_select(dim, zigzag_order(x.shape[dim], ranks))
        found[name] = cut(x, inputs[name].layout, mesh, rank)
    return found


def zigzag_order(n: int, ranks: int) -> Tensor:
    """Places of n tokens in 2 * ranks chunks: rank r's part is chunk r and chunk 2 * ranks - 1 - r."""
    chunks = torch.arange(n).reshape(2 * ranks, -1)
    return torch.cat([chunks[c] for r in range(ranks) for c in (r, 2 * ranks - 1 - r)])
