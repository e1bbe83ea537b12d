"""Memory of the ranks of a stage, from its program, its placement, its graphs and its actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.graphs import Graphs
from specc.compiler.placement.cost import INDEX_BYTES
from specc.compiler.placement.mesh import ITEMSIZE
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import Mesh, local_shape
from specc.compiler.program import Call, Program
from specc.compiler.schedule.actions import Action
from specc.compiler.schedule.footprint import Feet
from specc.compiler.schedule.kept import Kept
from specc.compiler.schedule.memory import Memory, memory_of
from specc.compiler.types import TensorType
from specc.compiler.updating import parts_of, update_of
from specc.spec.optimizer import ADAMW, OptimizerSpec
from specc.spec.plan import Precision


@dataclass(frozen=True)
class Widths:
    """Bytes of a number in the optimizer's weights, in the graphs, and in sums of gradients."""

    master: int
    compute: int
    reduce: int


def widths_of(precision: Precision) -> Widths:
    """Those of a plan."""
    return Widths(*(ITEMSIZE[name] for name in (precision.master, precision.compute, precision.reduce)))


def rank_memories(
    program: Program, placed: Placed | None, sizes: Mapping[str, int], calls: Sequence[Call],
    graphs: Mapping[str, Graphs], feet: Feet, schedules: Sequence[Sequence[Action]], *, widths: Widths,
    ema: bool = False, moments_on_host: bool = False, optimizer: OptimizerSpec = ADAMW,
) -> list[Memory]:  # fmt: skip
    """The memory of a step of each rank of the pipeline; ranks that differ in other axes have the same."""
    parts = parts_of(program, placed, optimizer)
    inputs = {n: input_bytes(t, n, placed, sizes, widths.compute) for n, t in program.inputs.items()}
    found: list[Memory] = []
    for actions in schedules:
        used = {path for a in actions if a.kind == "F" for path in calls[a.call].params}
        params = {n: part.numel for n, part in parts.items() if n in used}
        trained = {n: parts[n] for n in params if n in program.trainable}
        kept = Kept(
            params, program.trainable, update_of(optimizer, trained, widths.master, widths.compute), widths.master,
            widths.compute, widths.reduce, ema, placed is not None, moments_on_host, program.narrow,
        )  # fmt: skip
        found.append(memory_of(actions, calls, graphs, feet, kept, program.loss, inputs))
    return found


def local_numel(type_: TensorType, path: str, placed: Placed | None, sizes: Mapping[str, int]) -> int:
    """Numbers of a rank's part of a parameter or input."""
    layout = {**placed.params, **placed.inputs}[path] if placed else ()
    return math.prod(local_shape(type_.shape(sizes), layout, placed.mesh if placed else Mesh(())))


def input_bytes(type_: TensorType, name: str, placed: Placed | None, sizes: Mapping[str, int], compute: int) -> int:
    return local_numel(type_, name, placed, sizes) * INDEX_BYTES.get(type_.dtype, compute)
