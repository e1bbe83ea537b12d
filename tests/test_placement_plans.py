"""Placements of the library's models: the plans that a person would write are found, and count as they should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from specc.compiler.elaborate import elaborate
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.placement.cost import collectives
from specc.compiler.placement.place import Options, place
from specc.compiler.placement.placed import Placed, PlacedBody
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import Program
from specc.spec.spec import load

SIZES = {"B": 4, "S": 64, "T": 64}
SMALL = [f"model.dims.{k}={v}" for k, v in {"D": 64, "L": 2, "H": 4, "K": 2, "F": 128, "V": 256}.items()]
ROLES = {"dp": "batch", "dp_replicate": "batch", "cp": "sequence", "ep": "experts", "tp": "free", "auto": "free"}
OBJECTIVES = {"t5": "span_corruption"}


def program_of(name: str, *changes: str) -> Program:
    path = Path(str(files("specc.spec.models") / f"{name}.yaml"))
    program = elaborate(load(path, list(changes)), objective=OBJECTIVES.get(name))
    return fuse_linear_cross_entropy(prune(program, []))


def mesh(**sizes: int) -> Mesh:
    return Mesh(tuple(Axis(n, k, ROLES[n]) for n, k in sizes.items()))  # type: ignore[arg-type]


def counts(b: PlacedBody) -> tuple[Counter[str], Counter[str]]:
    """Collectives of real values forward and backward in a call; uses that take a value alike share one move."""
    layouts, types = b.layouts(), b.body.types()
    seen = {(n, e.takes(i)) for e in b.eqns for i, n in enumerate(e.eqn.ins) if n}
    seen |= set(zip(b.body.outs, b.outs, strict=True))
    forward, backward = Counter[str](), Counter[str]()
    for name, dst in seen:
        assert dst is not None
        for _, _, f, g in collectives(layouts[name], dst):
            if types[name].dtype == "float":
                forward.update([f] if f else [])
                backward.update([g] if g else [])
    return forward, backward


def small_llama(m: Mesh, options: Options) -> Placed:
    return place(program_of("llama", *SMALL), m, SIZES, options)


def test_tensor_parallel_sums_twice_each_way(golden: Callable[[str, str], None]) -> None:
    placed = small_llama(mesh(dp=2, tp=2), Options(sequence_parallel=False))
    golden("placed_tp.txt", str(placed))
    assert counts(placed.bodies["layers"]) == ({"all-reduce": 2}, {"all-reduce": 2})
