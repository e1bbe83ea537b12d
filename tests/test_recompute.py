"""Calls that run forward again: in the schedule, in memory, and in numbers."""

from __future__ import annotations

import torch

from specc.compiler.build import lower
from specc.compiler.schedule.actions import one_of_mesh, one_rank
from specc.compiler.schedule.recompute import choose, recomputed
from tests.grid.__main__ import TOLERANCE, run
from tests.grid.memory import TOLERANCE as OF_MEMORY
from tests.grid.memory import measure
from tests.grid.models import TRACERS
from tests.grid.run import Case


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
    plain, again = (Case("llama", plan, 2, torch.float32) for plan in ("zero3", "zero3-recompute"))
    before, after = measure(plain)[0], measure(again)[0]
    assert after.error <= OF_MEMORY
    assert after.measured < before.measured
    cases = [Case(model, plan, 2) for model, plan in (("llama", "zero3-recompute"), ("t5", "1f1b-recompute"))]
    found = run(cases, tell=False)
    assert all(isinstance(e, float) and e <= TOLERANCE[torch.float64] for e in found.values()), found
