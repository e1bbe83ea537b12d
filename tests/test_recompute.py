"""Calls that run forward again: in the schedule, in memory, and in numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import specc
from specc.compiler.build import build_spec, lower
from specc.compiler.graphs import Graphs
from specc.compiler.lower.placed_bodies import lower_placed
from specc.compiler.placement.place import place
from specc.compiler.schedule.actions import one_of_mesh, one_rank
from specc.compiler.schedule.recompute import choose, recomputed
from specc.spec.errors import SpecError
from tests.grid.__main__ import TOLERANCE, run
from tests.grid.memory import TOLERANCE as OF_MEMORY
from tests.grid.memory import measure
from tests.grid.models import TRACERS
from tests.grid.plans import PLANS
from tests.grid.run import Case, artifact

pytestmark = pytest.mark.slow
TINY = Path(__file__).parent.parent / "examples" / "tiny.yaml"


def test_a_call_runs_again_right_before_its_backward_if_others_ran_between() -> None:
    assert " | ".join(map(str, recomputed(one_rank(3, 1, {1, 2}), {0, 1, 2}))) == (
        "UNSHARD | F c0 m0 | F c1 m0 | F c2 m0 | B c2 m0 | RECOMPUTE c1 m0 | B c1 m0 | REDUCE | STEP"
    )


def test_parameters_that_come_for_each_use_are_there_to_run_again() -> None:
    actions = [str(a) for a in recomputed(one_of_mesh(3, 1, {0, 1, 2}, True, True), {0, 1, 2})]
    assert actions[actions.index("RECOMPUTE c0 m0") - 2 :][:4] == [
        "B c1 m0", "REDUCE c1 m0", "RECOMPUTE c0 m0", "B c0 m0",
    ]  # fmt: skip
    assert actions.index("RECOMPUTE c0 m0") > len(actions) - 1 - actions[::-1].index("UNSHARD c0")


def test_auto_runs_the_fewest_calls_again_that_fit() -> None:
    tracer = TRACERS["llama"]
    graphs, calls = lower(tracer.program(), tracer.sizes, torch.float32)

    def peak(which: frozenset[int]) -> int:
        return 100 - 10 * len(which)

    everything = choose("full", calls, graphs, 0.0, peak)
    assert {calls[c].body for c in everything} == {"layers", "head"}
    assert choose("none", calls, graphs, 0.0, peak) == frozenset()
    assert choose("auto", calls, graphs, 100.0, peak) == frozenset()
    assert len(choose("auto", calls, graphs, 85.0, peak)) == 2
    assert choose("auto", calls, graphs, 0.0, peak) == everything


def test_running_calls_again_takes_less_memory_as_predicted_and_gives_the_same_numbers() -> None:
    plain, half, again = (
        artifact(Case("llama", plan, 2, torch.float32)).peaks[0] for plan in ("ring", "ring-half", "ring-recompute")
    )
    assert again < half < plain
    assert measure(Case("llama", "ring-half", 2, torch.float32))[0].error <= OF_MEMORY
    cases = [Case(model, plan, 2) for model, plan in (("llama", "zero3-recompute"), ("t5", "1f1b-recompute"))]
    found = run(cases, tell=False)
    assert all(isinstance(e, float) and e <= TOLERANCE[torch.float64] for e in found.values()), found


def test_auto_saves_less_in_blocks_before_it_runs_calls_again(tmp_path: Path) -> None:
    def built(*overrides: str) -> tuple[int, int]:
        """Bytes at the fullest moment, and calls that run again."""
        build_spec(specc.load(TINY, list(overrides)), tmp_path / "b")
        home = tmp_path / "b" / "stages" / "pretrain"
        peak = json.loads((home / "memory.json").read_text())["peak"]
        return peak, (home / "schedule.txt").read_text().count("RECOMPUTE")

    whole, none = built()
    assert none == 0
    less, none = built(f"plan.cluster.memory={0.8 * whole / 2**30}")
    assert (less <= 0.8 * whole, none) == (True, 0)
    least, some = built(f"plan.cluster.memory={0.57 * whole / 2**30}")
    assert (least <= 0.57 * whole, some > 0) == (True, True)
    with pytest.raises(SpecError, match="a rank needs"):
        built(f"plan.cluster.memory={0.2 * whole / 2**30}")


def test_a_collective_is_not_run_again_to_save_bytes() -> None:
    tracer, plan = TRACERS["llama"], PLANS["tp"]
    placed = place(tracer.program(), plan.mesh(2), tracer.sizes, plan.options)
    n = [collectives(lower_placed(placed, torch.float32, share=share)[0]["layers"]) for share in (1.0, 0.25)]
    assert n[0] == n[1]


def collectives(g: Graphs) -> int:
    assert g.bwd is not None
    return sum("_c10d_functional" in str(node.target) for gm in (g.fwd, g.bwd) for node in gm.graph.nodes)
