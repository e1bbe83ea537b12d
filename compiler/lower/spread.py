"""Where the parts of an equation's operands and results lie on a mesh: what an op needs that looks beyond its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.placement.placed import PlacedEqn
from specc.compiler.placement.types import Axis, Layout, Mesh
from specc.compiler.types import Dim, TensorType, size_of

Value = Callable[[str, Layout], Tensor]


@dataclass(frozen=True)
class Setting:
    """A mesh with this rank's coordinates (int64, one number each), and the whole sizes of dims.

    `zigzag[dim] = n`: the dim lies in 2n chunks of which part r has chunk r and chunk 2n - 1 - r."""

    mesh: Mesh
    coordinates: Sequence[Tensor]
    sizes: Mapping[str, int]
    zigzag: Mapping[str, int]

    def places(self, dim: Dim, axes: Sequence[int]) -> Tensor:
        """Where the entries of this rank's part stand in the whole; the axes split the dim, the outermost first."""
        whole = n = size_of(dim, self.sizes)
        begin: Tensor | None = None
        for a in axes:
            n //= self.mesh.axes[a].size
            step = self.coordinates[a] * n
            begin = step if begin is None else begin + step
        at = torch.arange(n) if begin is None else torch.arange(n) + begin
        parts = self.zigzag.get(dim.of or dim.name)
        return at if parts is None else unzigzag(at, whole, parts)


def is_ordered(layout: Layout, dims: Sequence[Dim], at: int, zigzag: Mapping[str, int]) -> bool:
    """Whether the entries along a dim of a value are all here, one after the other."""
    i = at % len(dims)
    return not any(p.kind == "S" and p.dim == i for p in layout) and (dims[i].of or dims[i].name) not in zigzag


def unzigzag(at: Tensor, whole: int, parts: int) -> Tensor:
    """The true index of a place in a sequence that lies in zigzag."""
    chunk = whole // (2 * parts)
    part, half = at // (2 * chunk), at // chunk % 2
    return torch.where(half == 0, part, 2 * parts - 1 - part) * chunk + at % chunk


@dataclass(frozen=True)
class Spread:
    """An equation with its layouts. `ins` are whole types, and `types` those of all values of the body; `value` gives
    one in a layout; `made` is the equation that makes it."""

    setting: Setting
    placed: PlacedEqn
    ins: tuple[TensorType | None, ...]
    value: Value
    types: Mapping[str, TensorType]
    made: Mapping[str, PlacedEqn]
    routes: dict[str, object]  # what `dispatch` leaves for `row_gates` and `combine`, by the name of the order

    @property
    def mesh(self) -> Mesh:
        return self.setting.mesh

    def type_of(self, name: str) -> TensorType:
        return self.types[name]

    def using(self, *names: str) -> list[int]:
        """The axes along which the strategy has one of these names."""
        return [a for a, s in enumerate(self.placed.strategies) if s.name in names]

    def summed(self, j: int = 0) -> list[int]:
        """The axes along which a result is a partial sum."""
        return [a for a, p in enumerate(self.placed.gives(j)) if p.kind == "P"]

    def axis(self, a: int) -> tuple[Axis, Tensor]:
        return self.mesh.axes[a], self.setting.coordinates[a]

    def split(self, layout: Layout, i: int) -> list[int]:
        """The axes of a layout that split dim i."""
        return [a for a, p in enumerate(layout) if p.kind == "S" and p.dim == i]

    def places_of_result(self, i: int, j: int = 0) -> Tensor:
        return self.setting.places(self.placed.eqn.types[j].dims[i], self.split(self.placed.gives(j), i))

    def places_of_operand(self, k: int, i: int) -> Tensor:
        layout, type_ = self.placed.takes(k), self.ins[k]
        assert layout is not None
        assert type_ is not None
        return self.setting.places(type_.dims[i], self.split(layout, i))
