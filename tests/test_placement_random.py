"""Any plan gives the numbers of one process: the solver with drawn costs finds plans that nobody would write."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import pytest
import torch

from specc.compiler.placement import problem
from specc.compiler.placement.cost import Machine
from specc.compiler.placement.options import Options
from specc.compiler.placement.place import place
from specc.compiler.placement.placed import Placed, Strategy
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import Eqn
from specc.compiler.types import TensorType
from tests.grid import run
from tests.grid.models import TRACERS
from tests.grid.plans import Plan
from tests.grid.processes import spawn

PLANS = 2
TOLERANCE = 1e-11


def drawn(seed: int, e: Eqn, strategies: Sequence[Strategy]) -> float:
    """Up to a millisecond, by the strategies' types alone."""
    text = repr((seed, e.path, e.outs, [(s.name, str(s.ins), str(s.outs)) for s in strategies]))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32 * 1e-3


def random_plan(model: str, axes: tuple[Axis, ...], seed: int, patch: pytest.MonkeyPatch) -> Placed:
    def cost(
        e: Eqn,
        _: Sequence[TensorType | None],
        strategies: Sequence[Strategy],
        machine: Machine,
        sizes: Mapping[str, int],
    ) -> float:
        return drawn(seed, e, strategies)

    patch.setattr(problem, "work_cost", cost)
    tracer = TRACERS[model]
    return place(tracer.program(), Mesh(axes), tracer.sizes, Options(split_weights=()))


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "axes"),
    [
        ("t5", (Axis("auto", 2),)),
        ("llama", (Axis("cp", 2, "sequence"), Axis("auto", 2))),
    ],
)  # fmt: skip
def test_random_plans_equal_one_process(model: str, axes: tuple[Axis, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[run.Artifact] = []
    for seed in range(PLANS):
        plan = random_plan(model, axes, seed, monkeypatch)
        monkeypatch.setattr(run, "place", lambda *_, plan=plan: plan)
        monkeypatch.setitem(run.PLANS, "dp", Plan(lambda _: axes))
        made.append(run.artifact(run.Case(model, "dp", plan.mesh.size)))
    expected = run.reference(model, torch.float64, run.PLANS["dp"].microbatches)
    for seed, found in enumerate(spawn(run.on_rank, made[0].mesh.size, made, seconds=300)[0]):
        assert not isinstance(found, str), f"plan {seed}: {found}"
        assert run.error(found.outcome(), expected) < TOLERANCE, f"plan {seed}"
