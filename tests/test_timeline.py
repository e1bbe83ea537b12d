"""When the actions of the ranks of a pipeline begin."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import specc
from specc.compiler.build import build_spec
from specc.compiler.program import Call
from specc.compiler.report.gather import read_build
from specc.compiler.schedule.actions import parse
from specc.compiler.schedule.timeline import Stuck, starts

TINY = Path(__file__).parent.parent / "examples" / "tiny.yaml"
CALLS = [Call("a", 0, ("x",), (), ("h",)), Call("b", 0, ("h",), (), ("y",))]
FIRST = "F c0 m0\nSEND m0 r1 %h\nRECV m0 r1 d%h\nB c0 m0\nSTEP"
SECOND = "RECV m0 r0 %h\nF c1 m0\nB c1 m0\nSEND m0 r0 d%h\nSTEP"


def test_a_rank_waits_for_what_a_call_takes_and_for_its_gradient() -> None:
    found = starts([parse(FIRST), parse(SECOND)], CALLS, lambda a: 1.0 if a.kind in "FB" else 0.0)
    assert found == [[0.0, 1.0, 1.0, 3.0, 4.0], [0.0, 1.0, 2.0, 3.0, 3.0]]


def test_orders_that_do_not_fit_are_told() -> None:
    with pytest.raises(Stuck, match="rank 0 waits for ever at B c0 m0"):
        starts([parse(FIRST), parse(SECOND.replace("SEND m0 r0 d%h\n", ""))], CALLS, lambda a: 1.0)


def test_the_chart_of_a_pipeline_shows_where_its_ranks_wait(tmp_path: Path) -> None:
    overrides = ["plan.mesh.pp=2", "stages.pretrain.batch.microbatch=4"]
    build_spec(specc.load(TINY, overrides), tmp_path / "b")
    (schedule,) = read_build(tmp_path / "b")["schedules"]
    first, second = schedule["ranks"]
    fs = [next(a for a in rank if a["kind"] == "F") for rank in (first, second)]
    assert fs[1]["start"] >= fs[0]["start"] + fs[0]["work"]
    idle = [b["start"] - a["start"] - a["work"] for a, b in pairwise(first)]
    assert max(idle) > 0.5 * fs[0]["work"]  # the first rank waits for the gradient of its first microbatch
