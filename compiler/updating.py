"""What updating the parameters of a rank takes: memory between steps and in an update, bytes moved, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from specc.compiler.moments import MOMENTS, Matrix, orthogonalised, settings_of, together
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import Layout, Mesh, local_shape
from specc.compiler.program import Program
from specc.spec.optimizer import Muon, OptimizerSpec

PASSES = 4  # over a parameter's bytes: it is read and written, its gradient read, and once more to be clipped


@dataclass(frozen=True)
class Update:
    """`kept` are the bytes of the moments of each parameter that is trained, `units` of those that are updated at once
    where they wait on the host, in this order, `space` the most that an update needs beside them, `moved` the bytes
    that a step reads and writes."""

    kept: Mapping[str, int] = field(default_factory=dict)
    units: tuple[int, ...] = ()
    space: int = 0
    moved: int = 0
    flops: float = 0.0

    @property
    def two(self) -> int:
        """The moments of a unit and of the next one, at their most: what is on the device of those on the host."""
        return max((a + b for a, b in pairwise([*self.units, 0])), default=0)


@dataclass(frozen=True)
class Part:
    """What a rank has of a parameter: the whole's shape and the rank's; `matrix` is None unless Muon updates it, and
    then `ranks` share each of its matrices."""

    shape: tuple[int, ...]
    local: tuple[int, ...]
    matrix: Matrix | None = None
    ranks: int = 1

    @property
    def numel(self) -> int:
        return math.prod(self.local)


def parts_of(program: Program, placed: Placed | None, spec: OptimizerSpec) -> dict[str, Part]:
    """Those of a rank that has all calls."""
    matrices = orthogonalised(spec, program)
    mesh = placed.mesh if placed else Mesh(())
    return {
        path: part_of(p.type.shape({}), placed.params[path] if placed else (), mesh, matrices.get(path))
        for path, p in program.params.items()
    }


def part_of(shape: tuple[int, ...], layout: Layout, mesh: Mesh, matrix: Matrix | None) -> Part:
    """That of a parameter which lies so on a mesh."""
    splits = [(a.size, at.dim) for at, a in zip(layout, mesh.axes, strict=True) if matrix and at.kind == "S"]
    ranks = math.prod(size for size, dim in splits if matrix and dim not in matrix.alike)
    return Part(shape, local_shape(shape, layout, mesh), matrix, ranks)


def update_of(spec: OptimizerSpec, parts: Mapping[str, Part], master: int, compute: int) -> Update:
    """Of the trained parameters of a rank, with numbers of so many bytes in weights and in products."""
    matrices = [path for path, part in parts.items() if part.matrix]
    settings = settings_of(spec, {path: len(part.shape) for path, part in parts.items()}, matrices)
    kept = {path: len(MOMENTS[settings[path][0]]) * part.numel * master for path, part in parts.items()}
    alike: dict[Hashable, list[str]] = {}
    for path in matrices:
        alike.setdefault((parts[path], settings[path]), []).append(path)
    moved = sum(PASSES * part.numel * master + 2 * kept[path] for path, part in parts.items())
    space, flops = 0, 0.0
    if isinstance(spec, Muon):
        for paths in alike.values():
            space = max(space, _space(parts[paths[0]], len(paths), compute))
            flops += orthogonal_flops(spec, parts[paths[0]], len(paths))
    elif spec.kind == "lion":
        space = max((part.numel * master for part in parts.values()), default=0)
    return Update(kept, _units(parts, kept, alike.values()), space, moved, flops)


def _units(parts: Mapping[str, Part], kept: Mapping[str, int], alike: Iterable[Sequence[str]]) -> tuple[int, ...]:
    """Parameters one by one, and matrices in stacks, by the place of the first one."""
    units = [[path] for path, part in parts.items() if not part.matrix]
    for paths in alike:
        size = together(parts[paths[0]].numel, parts[paths[0]].ranks)
        units += [list(paths[i : i + size]) for i in range(0, len(paths), size)]
    places = {path: i for i, path in enumerate(parts)}
    return tuple(sum(kept[path] for path in unit) for unit in sorted(units, key=lambda unit: places[unit[0]]))


def _sides(part: Part) -> tuple[int, int, int]:
    """Matrices of a parameter that a rank has parts of, and the short and the long side of one."""
    assert part.matrix is not None
    _, rows, columns = part.matrix.sizes(part.shape)
    return part.matrix.sizes(part.local)[0], min(rows, columns), max(rows, columns)


def _space(part: Part, count: int, compute: int) -> int:
    """A stack of parameters, as it came and before and behind an iteration, and its products with itself."""
    alike, short, _ = _sides(part)
    size = min(together(part.numel, part.ranks), -(-count // part.ranks) * part.ranks)
    squares = size // part.ranks * alike * short * short
    return compute * (3 * size * part.numel + squares)


def orthogonal_flops(spec: Muon, part: Part, count: int) -> float:
    """Of making matrices of so many such parameters orthogonal on the rank that works on most of them: it works on
    whole ones."""
    alike, short, long = _sides(part)
    return spec.steps * -(-count // part.ranks) * alike * iteration(short, long)


def iteration(short: int, long: int) -> float:
    """FLOPs of an iteration of Newton and Schulz on a matrix: two products with its other side, and a square."""
    return 4.0 * short**2 * long + 2.0 * short**3
