"""What the optimizer's kind changes of a body's update, against AdamW's two moments of each number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from specc.compiler.moments import MOMENTS, Matrix, rule_of
from specc.compiler.placement.cost import Machine
from specc.compiler.placement.placed import PlacedBody
from specc.compiler.updating import Part, orthogonal_flops, part_of
from specc.spec.optimizer import Muon, OptimizerSpec

MOMENT = 4  # bytes of one of a number, in fp32
MOVED = 2  # times these: it is read and written


@dataclass(frozen=True)
class Update:
    """Moments fewer than AdamW's, and how many parameters there are of each kind that Muon makes orthogonal: those of a
    rank, of which its model parallelism splits some. ZeRO's ranks share both."""

    spared: float = 0.0
    matrices: Mapping[Part, int] = field(default_factory=dict)

    def __add__(self, other: Update) -> Update:
        return Update(self.spared + other.spared, Counter(self.matrices) + Counter(other.matrices))

    def __mul__(self, times: int) -> Update:
        return Update(self.spared * times, {part: n * times for part, n in self.matrices.items()})

    def flops(self, spec: OptimizerSpec, shards: int) -> float:
        """Of the rank that works on most matrices, where so many share each parameter."""
        if not isinstance(spec, Muon):
            return 0.0
        return sum(orthogonal_flops(spec, _shared(part, shards), n) for part, n in self.matrices.items())


NO_OTHER = Update()


def updates_of(
    spec: OptimizerSpec, b: PlacedBody, matrices: Mapping[str, Matrix], machine: Machine
) -> dict[str, Update]:
    """Of each parameter of a body, by its name there; `matrices` are those that Muon updates, by the same names."""
    found: dict[str, Update] = {}
    for p, layout in zip(b.body.params, b.params, strict=True):
        part = part_of(p.type.shape({}), layout, machine.mesh, matrices.get(p.name))
        fewer = len(MOMENTS["adamw"]) - len(MOMENTS[rule_of(spec, part.matrix is not None)])
        found[p.name] = Update(fewer * part.numel, {part: 1} if part.matrix else {})
    return found


def _shared(part: Part, shards: int) -> Part:
    """A rank's part where ZeRO splits it once more: the largest dim that divides and that nothing else splits."""
    assert part.matrix is not None
    sizes = list(zip(part.shape, part.local, strict=True))
    free = [d for d, (size, own) in enumerate(sizes) if size == own and size % shards == 0]
    if not free:
        return part
    dim = max(free, key=lambda d: part.shape[d])
    local = tuple(own // shards if d == dim else own for d, (_, own) in enumerate(sizes))
    return replace(part, local=local, ranks=part.ranks * (1 if dim in part.matrix.alike else shards))
