"""Which calls each stage of a pipeline has, as the software shares them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specc.compiler.foresight.calls import CallTime
from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.work import BodyWork
from specc.compiler.schedule.schedules import SCHEDULES
from specc.compiler.schedule.slots import Where, loop
from specc.compiler.schedule.split import split
from specc.spec.hardware import Software


def stages_of(
    calls: Sequence[str], each: Mapping[str, CallTime], works: Mapping[str, BodyWork], recipe: Recipe,
    software: Software | None,
) -> tuple[list[Sequence[str]], Where]:  # fmt: skip
    """The calls of each stage and the rank of each stage; without software stages have equal numbers of calls."""
    n = recipe.pp * recipe.chunks
    if software is None:
        begins = [i * len(calls) // n for i in range(n)]
    elif software.stages == "passed":
        begins = passed([_products(works[c]) for c in calls], n)
    else:
        begins = split([each[c].total for c in calls], n)
    stages = [calls[a:b] for a, b in zip(begins, [*begins[1:], len(calls)], strict=True)]
    row = SCHEDULES.get(recipe.schedule)
    return stages, row.where(recipe.pp, recipe.chunks) if row else loop(recipe.pp, 1)


def passed(costs: Sequence[float], n: int) -> list[int]:
    """The first index of each of `n` stages that take costs until all so far have passed their share; none is empty."""
    assert 0 < n <= len(costs), f"{len(costs)} calls do not make {n} stages"
    begins, done = [0], 0.0
    for i, cost in enumerate(costs[:-1], 1):
        done += cost
        left = n - len(begins)
        if left and (done > sum(costs) * len(begins) / n or len(costs) - i == left):
            begins.append(i)
    return begins


def _products(work: BodyWork) -> float:
    """FLOPs of a call's products, attention not counted."""
    return sum(k.flops for k in work.kernels if k.kind in ("product", "loss"))
