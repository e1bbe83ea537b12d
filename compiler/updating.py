"""What updating the parameters of a rank takes: memory between steps and in an update, bytes moved, FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from specc.compiler.moments import MOMENTS, Matrix, orthogonalised, rules_of, together
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import Mesh, local_shape
from specc.compiler.program import Program
from specc.spec.optimizer import Muon, OptimizerSpec

PASSES = 4  # over a parameter's bytes: it is read and written, its gradient read, and once more to be clipped


@dataclass(frozen=True)
class Update:
    """`kept` are the bytes of the moments of each parameter that is trained, `units` of those that are updated at once
    where they wait on the host, `space` the most that an update needs beside them, `moved` the bytes that a step reads
    and writes."""

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
    found: dict[str, Part] = {}
    for path, p in program.params.items():
        shape, layout, m = p.type.shape({}), placed.params[path] if placed else (), matrices.get(path)
        cuts = [
            a.size for at, a in zip(layout, mesh.axes, strict=True) if m and at.kind == "S" and at.dim not in m.alike
        ]
        found[path] = Part(shape, local_shape(shape, layout, mesh), m, math.prod(cuts))
    return found


def update_of(spec: OptimizerSpec, parts: Mapping[str, Part], master: int, compute: int) -> Update:
    """Of the trained parameters of a rank, with numbers of so many bytes in weights and in products."""
    rules = rules_of(spec, parts, [path for path, part in parts.items() if part.matrix])
    kept = {path: len(MOMENTS[rules[path]]) * part.numel * master for path, part in parts.items()}
    moved = sum(PASSES * part.numel * master + 2 * kept[path] for path, part in parts.items())
    space, flops = 0, 0.0
    if isinstance(spec, Muon):
        for part, count in _alike(parts):
            space = max(space, _space(part, count, compute))
            flops += spec.steps * _flops(part, count)
    elif spec.kind == "lion":
        space = max((part.numel * master for part in parts.values()), default=0)
    return Update(kept, _units(parts, kept), space, moved, flops)


def _units(parts: Mapping[str, Part], kept: Mapping[str, int]) -> tuple[int, ...]:
    """Parameters one by one, and matrices in stacks."""
    found = [kept[path] for path, part in parts.items() if not part.matrix]
    for part, count in _alike(parts):
        size, each = together(part.numel, part.ranks), next(kept[p] for p, x in parts.items() if x == part)
        found += [min(size, count - i) * each for i in range(0, count, size)]
    return tuple(found)


def _alike(parts: Mapping[str, Part]) -> list[tuple[Part, int]]:
    """The parts that Muon works on together, and how many they are."""
    found: dict[Part, int] = {}
    for part in parts.values():
        if part.matrix:
            found[part] = found.get(part, 0) + 1
    return list(found.items())


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


def _flops(part: Part, count: int) -> float:
    """Of an iteration on the matrices of so many parameters that this rank works on."""
    alike, short, long = _sides(part)
    return -(-count // part.ranks) * alike * iteration(short, long)


def iteration(short: int, long: int) -> float:
    """FLOPs of an iteration of Newton and Schulz on a matrix: two products with its other side, and a square."""
    return 4.0 * short**2 * long + 2.0 * short**3
