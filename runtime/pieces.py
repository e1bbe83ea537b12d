"""Where a tensor's pieces lie in the whole, and which of them a region needs: arithmetic, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import Tensor

from specc.compiler.placement.types import Layout, Mesh, R, local_shape, part

Region = tuple[slice, ...]


@dataclass(frozen=True)
class Sharding:
    """How the tensors of a rank are kept: the layout of each parameter, which its moments and its average share.

    In a pipeline `holders` are the ranks along its axis that have a parameter; the first of them owns it."""

    mesh: Mesh
    layouts: Mapping[str, Layout]
    rank: int = 0
    holders: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def layout(self, name: str, n_dims: int) -> Layout:
        """Of a tensor called `path` or `moment/path`; a scalar, and what is not known, is whole on every rank."""
        whole = (R,) * len(self.mesh.axes)
        return self.layouts.get(name.split("/", 1)[-1], whole) if n_dims else whole

    def shape(self, name: str, local: Sequence[int]) -> tuple[int, ...]:
        """The whole's, of this rank's part."""
        sizes = list(local)
        for place, axis in zip(self.layout(name, len(sizes)), self.mesh.axes, strict=True):
            if place.kind == "S":
                sizes[place.dim] *= axis.size
        return tuple(sizes)

    def region(self, name: str, shape: Sequence[int]) -> Region:
        """Where this rank's part lies in a whole of this shape. Raises ValueError if a split leaves a rest."""
        layout = self.layout(name, len(shape))
        local_shape(shape, layout, self.mesh)
        return part(shape, layout, self.mesh, self.rank)

    def owns(self, name: str, n_dims: int) -> bool:
        """Whether this rank is the one of those with the same part that writes it and counts it."""
        first = self.first_holder(name)
        return all(
            p.kind == "S" or c == (first if axis.role == "stages" else 0)
            for p, c, axis in zip(
                self.layout(name, n_dims), self.mesh.coordinates(self.rank), self.mesh.axes, strict=True
            )
        )  # fmt: skip

    def holds(self, name: str) -> bool:
        """Whether this rank of the pipeline has it."""
        found = self.holders.get(name.split("/", 1)[-1])
        return found is None or self.rank // self.mesh.inner.size in found

    def first_holder(self, name: str) -> int:
        """The first rank of the pipeline that has it."""
        return self.holders.get(name.split("/", 1)[-1], (0,))[0]


WHOLE = Sharding(Mesh(()), {})


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, in a file under the tensor's name."""

    file: str
    begin: tuple[int, ...]
    size: tuple[int, ...]


def covers(shape: Sequence[int], pieces: Sequence[Piece]) -> bool:
    """Whether the pieces are a grid that tiles the whole: each element is in exactly one of them."""
    if any(len(p.begin) != len(shape) or len(p.size) != len(shape) for p in pieces):
        return False
    cuts: list[list[tuple[int, int]]] = []
    for d, n in enumerate(shape):
        spans = sorted({(p.begin[d], p.begin[d] + p.size[d]) for p in pieces})
        ends = [0, *(end for _, end in spans)]
        if [begin for begin, _ in spans] != ends[:-1] or ends[-1] != n or (n and ends != sorted(set(ends))):
            return False
        cuts.append(spans)
    boxes = {tuple(zip(p.begin, (b + n for b, n in zip(p.begin, p.size, strict=True)), strict=True)) for p in pieces}
    return len(boxes) == len(pieces) and boxes == set(product(*cuts))


def overlap(region: Region, piece: Piece) -> tuple[Region, Region] | None:
    """Where a piece and a region meet, counted from the region's begin and from the piece's; None if they do not."""
    there: list[slice] = []
    here: list[slice] = []
    for span, begin, size in zip(region, piece.begin, piece.size, strict=True):
        first, last = max(span.start, begin), min(span.stop, begin + size)
        if first >= last:
            return None
        there.append(slice(first - span.start, last - span.start))
        here.append(slice(first - begin, last - begin))
    return tuple(there), tuple(here)


def extent(region: Region) -> tuple[int, ...]:
    return tuple(s.stop - s.start for s in region)


def elements(region: Region) -> int:
    return math.prod(extent(region))


def own_piece(sharding: Sharding, name: str, t: Tensor, file: str) -> tuple[tuple[int, ...], Piece]:
    """The whole's shape, and the piece that this rank has of it."""
    shape = sharding.shape(name, t.shape)
    region = sharding.region(name, shape)
    return shape, Piece(file, tuple(s.start for s in region), extent(region))
