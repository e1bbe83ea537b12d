"""How a value lies along one axis of a mesh, and along all of them.

A type says the layout of the value and of its gradient, so that one forward program prices and lowers both directions:

    S(d)  split on dim d          gradient: S(d)
    R     replicated              gradient: R
    V     replicated              gradient: P    (each rank's part; what a product with split weights eats)
    P     a sum over the ranks    gradient: R"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from specc.compiler.types import TensorType

Role = Literal["batch", "sequence", "experts", "free", "stages"]


@dataclass(frozen=True)
class Axis:
    """A mesh axis. A role other than `free` says which dims it splits, so that the solver has nothing to choose;
    `stages` splits no dims but the calls of the model."""

    name: str
    size: int
    role: Role = "free"

    def __str__(self) -> str:
        return f"{self.name}={self.size}"


@dataclass(frozen=True)
class Mesh:
    """The axes, outermost first: the last one's ranks are neighbours. `rank = sum(coordinate * stride)`."""

    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return math.prod(a.size for a in self.axes)

    def __str__(self) -> str:
        return " ".join(map(str, self.axes)) or "one process"

    @property
    def stages(self) -> int:
        """Ranks of the pipeline."""
        return math.prod(a.size for a in self.axes if a.role == "stages")

    @property
    def inner(self) -> Mesh:
        """The mesh of one rank of the pipeline: what values are placed on."""
        return Mesh(tuple(a for a in self.axes if a.role != "stages"))

    def coordinates(self, rank: int) -> tuple[int, ...]:
        """The rank's place along each axis."""
        found: list[int] = []
        for a in reversed(self.axes):
            rank, c = divmod(rank, a.size)
            found.append(c)
        return tuple(reversed(found))

    def group(self, axis: int, rank: int) -> list[int]:
        """The ranks that differ from this one along the axis alone, in the order of their coordinates."""
        here = self.coordinates(rank)
        stride = math.prod(a.size for a in self.axes[axis + 1 :])
        first = rank - here[axis] * stride
        return [first + i * stride for i in range(self.axes[axis].size)]


@dataclass(frozen=True)
class Place:
    """A value along one axis; `dim` is the place of the split dim among the value's dims."""

    kind: Literal["S", "R", "V", "P"]
    dim: int = -1

    def __str__(self) -> str:
        return f"S{self.dim}" if self.kind == "S" else self.kind

    @property
    def gradient(self) -> Place:
        """How the gradient of such a value lies."""
        return {"S": self, "R": R, "V": P, "P": R}[self.kind]


def place_named(text: str) -> Place:
    """The place that `str` wrote: `S1`, `R`, `V` or `P`."""
    kinds: dict[str, Place] = {"R": R, "V": V, "P": P}
    return kinds[text] if text in kinds else S(int(text.removeprefix("S")))


R, V, P = Place("R"), Place("V"), Place("P")
Layout = tuple[Place, ...]  # one for each axis of the mesh


def S(dim: int) -> Place:
    return Place("S", dim)


def replicated(mesh: Mesh) -> Layout:
    return (R,) * len(mesh.axes)


def gradient(layout: Layout) -> Layout:
    return tuple(p.gradient for p in layout)


def local_shape(shape: Iterable[int], layout: Layout, mesh: Mesh) -> tuple[int, ...]:
    """What a rank holds of a value of this shape. Raises ValueError if a split leaves a rest."""
    sizes = list(shape)
    for place, axis in zip(layout, mesh.axes, strict=True):
        if place.kind == "S":
            if sizes[place.dim] % axis.size:
                raise ValueError(f"a dim of {sizes[place.dim]} does not split over {axis}")
            sizes[place.dim] //= axis.size
    return tuple(sizes)


def part(shape: Iterable[int], layout: Layout, mesh: Mesh, rank: int) -> tuple[slice, ...]:
    """Where a rank's part of a whole of this shape lies; the outer of two axes on one dim cuts first."""
    sizes = list(shape)
    begins = [0] * len(sizes)
    for place, axis, at in zip(layout, mesh.axes, mesh.coordinates(rank), strict=True):
        if place.kind == "S":
            sizes[place.dim] //= axis.size
            begins[place.dim] += at * sizes[place.dim]
    return tuple(slice(b, b + n) for b, n in zip(begins, sizes, strict=True))


def fits(type_: TensorType, layout: Layout, mesh: Mesh, sizes: Mapping[str, int]) -> bool:
    """Whether every split of the layout leaves no rest."""
    try:
        local_shape(type_.shape(sizes), layout, mesh)
    except ValueError:
        return False
    return True


def show(layout: Layout, mesh: Mesh, type_: TensorType | None = None) -> str:
    """`dp:S(B) tp:R`; axes along which the value is simply replicated are left out."""
    words: list[str] = []
    for place, axis in zip(layout, mesh.axes, strict=True):
        if place.kind == "S":
            words.append(f"{axis.name}:S({type_.dims[place.dim].name if type_ else place.dim})")
        elif place.kind != "R":
            words.append(f"{axis.name}:{place.kind}")
    return " ".join(words) or "R"
