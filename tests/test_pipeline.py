"""Pipelines of real models: what each rank runs, sends and receives, and that they train as one process does."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from specc.compiler.build import build_spec, lower
from specc.compiler.graphs import Graphs
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.program import Call, Program
from specc.compiler.schedule.actions import Action, parse
from specc.compiler.schedule.assemble import Order, Pipeline, assemble
from specc.compiler.schedule.files import read_schedules
from specc.compiler.schedule.schedules import SCHEDULES
from specc.compiler.schedule.timeline import depths
from specc.runtime.built import Build, open_build
from specc.spec.errors import SpecError
from specc.spec.spec import load
from tests.grid.__main__ import TOLERANCE, run
from tests.grid.models import TRACERS
from tests.grid.run import Case
from tests.training import write_spec

Line = tuple[int, int, str]  # the rank that a value is for, its microbatch, its name
MODELS = ("llama_deep", "gpt2_deep", "t5", "sd3")


@cache
def lowered(model: str) -> tuple[Program, dict[str, Graphs], tuple[Call, ...]]:
    program = sink_masks(TRACERS[model].program())
    return (program, *lower(program, TRACERS[model].sizes, torch.float64))


def piped(model: str, order: Order, costs: dict[str, float] | None = None) -> Pipeline:
    program, graphs, calls = lowered(model)
    names = frozenset(program.params)
    return assemble(order, calls, graphs, costs or dict.fromkeys(graphs, 1.0), program.loss or "", names)


def text(pipe: Pipeline) -> str:
    return "\n\n".join("\n".join(map(str, actions)) for actions in pipe.actions) + "\n"


@pytest.mark.parametrize("kind", ["1f1b", "zb-v"])
def test_the_actions_of_two_ranks(kind: str, golden: Callable[[str, str], None]) -> None:
    pipe = piped("gpt2_deep", Order(kind, 2, None, 3))
    golden(f"pipeline_{kind}.txt", text(pipe))
    assert [parse("\n".join(map(str, actions))) for actions in pipe.actions] == [list(a) for a in pipe.actions]


def orders(rng: random.Random, most: int) -> Order:
    kind = rng.choice(list(SCHEDULES))
    ranks = rng.randint(2, max(2, most // SCHEDULES[kind].least))
    microbatches = 2 * ranks if SCHEDULES[kind].fill or SCHEDULES[kind].rounds else rng.randint(1, 9)
    return Order(kind, ranks, None, microbatches, rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5)


def drawn(rng: random.Random) -> tuple[str, Pipeline]:
    """A model on a pipeline, its calls shared out by drawn costs."""
    model = rng.choice(MODELS)
    _, graphs, calls = lowered(model)
    return model, piped(model, orders(rng, len(calls)), {n: rng.uniform(0.1, 3.0) for n in graphs})


@pytest.mark.parametrize("seed", range(2))
def test_what_is_sent_is_received(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        _, pipe = drawn(rng)
        lines: dict[str, Counter[tuple[int, int, int, str]]] = {"SEND": Counter(), "RECV": Counter()}
        for rank, actions in enumerate(pipe.actions):
            for a in actions:
                if a.kind in lines:
                    ends = (rank, a.peer) if a.kind == "SEND" else (a.peer, rank)
                    lines[a.kind][*ends, a.microbatch, a.value] += 1
        assert lines["SEND"] == lines["RECV"]
        assert set(lines["SEND"].values()) <= {1}


@pytest.mark.parametrize("seed", range(2))
def test_every_rank_comes_to_its_end_with_all_calls_done(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        model, pipe = drawn(rng)
        _, graphs, calls = lowered(model)
        at, done = played(pipe, calls)
        assert at == [len(actions) for actions in pipe.actions], "a deadlock"
        n = 1 + max(a.microbatch for actions in pipe.actions for a in actions)
        for c, call in enumerate(calls):
            trained = graphs[call.body].bwd is not None
            for m in range(n):
                assert done["F", c, m] == 1
                assert done["B", c, m] + done["I", c, m] == trained


@pytest.mark.parametrize("seed", range(2))
def test_the_rank_that_is_least_far_holds_up_the_others(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        model, pipe = drawn(rng)
        calls, rank = lowered(model)[2], rng.randrange(len(pipe.actions))
        stop = rng.randrange(len(pipe.actions[rank]))
        far = depths(pipe.actions, calls)
        at, _ = played(pipe, calls, (rank, stop))
        reached = {r: far[r][i] for r, i in enumerate(at) if i < len(far[r])}
        assert all(d > reached[rank] for r, d in reached.items() if r != rank)


def played(
    pipe: Pipeline, calls: tuple[Call, ...], stop: tuple[int, int] = (-1, -1)
) -> tuple[list[int], Counter[tuple[str, int, int]]]:  # fmt: skip
    """Run the actions of all ranks as far as they go, one rank to its `stop` alone: a call waits for what its rank has
    asked for, and has all it takes. How far each rank came, and what was done."""
    at, sent, asked = [0] * len(pipe.actions), set[Line](), set[Line]()
    made: set[Line] = set()
    between = {v for call in calls for v in call.outs}
    done: Counter[tuple[str, int, int]] = Counter()
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(pipe.actions):
            while at[rank] < len(actions) and (rank, at[rank]) != stop:
                a = actions[at[rank]]
                if waits(a, rank, calls, asked - sent) or shares_alone(a, rank, pipe, at):
                    break
                if a.kind == "SEND":
                    sent.add((a.peer, a.microbatch, a.value))
                elif a.kind == "RECV":
                    asked.add((rank, a.microbatch, a.value))
                elif a.kind == "F":
                    ins = {(rank, a.microbatch, f"%{v}") for v in calls[a.call].ins if v in between}
                    assert ins <= made | asked
                    made |= {(rank, a.microbatch, f"%{v}") for v in calls[a.call].outs}
                done[a.kind, a.call, a.microbatch] += 1
                at[rank], moved = at[rank] + 1, True
    return at, done


def shares_alone(a: Action, rank: int, pipe: Pipeline, at: list[int]) -> bool:
    """Whether another rank has not come to where both add up a gradient."""
    others = [r for r in pipe.params[a.value] if r != rank] if a.kind == "SHARE" else []
    return any(at[r] < pipe.actions[r].index(a) for r in others)


def waits(a: Action, rank: int, calls: tuple[Call, ...], pending: set[Line]) -> bool:
    taken = {"F": [f"%{v}" for v in calls[a.call].ins], "B": [f"d%{v}" for v in calls[a.call].outs]}
    kind = "B" if a.kind == "I" else a.kind
    return any((rank, a.microbatch, v) in pending for v in taken.get(kind, []))


def test_a_tied_weight_is_shared_by_the_ranks_that_use_it() -> None:
    pipe = piped("gpt2_deep", Order("1f1b", 3, None, 3))
    assert pipe.params["embed.weight"] == (0, 2)
    assert [[a.value for a in actions if a.kind == "SHARE"] for actions in pipe.actions] == [
        ["embed.weight"], [], ["embed.weight"],
    ]  # fmt: skip


def test_a_rank_with_the_first_and_the_last_stage_shares_nothing() -> None:
    pipe = piped("gpt2_deep", Order("zb-v", 2, None, 3))
    assert pipe.params["embed.weight"] == (0,)
    assert not [a for actions in pipe.actions for a in actions if a.kind == "SHARE"]


def test_zero_3_brings_parameters_before_each_use_of_a_stage() -> None:
    pipe = piped("llama_deep", Order("1f1b", 4, None, 1, True, True, True))
    assert [str(a) for a in pipe.actions[3]] == [
        "UNSHARD c6", "RECV m0 r2 %v6", "UNSHARD c7", "F c6 m0", "F c7 m0", "UNSHARD c6", "B c7 m0", "REDUCE c7 m0",
        "B c6 m0", "REDUCE c6 m0", "SEND m0 r2 d%v6", "STEP",
    ]  # fmt: skip


def test_more_stages_than_calls_are_refused() -> None:
    with pytest.raises(SpecError) as e:
        piped("llama", Order("1f1b", 5, None, 2))
    assert e.value.codes == ("S527",)


def build_of(folder: Path, *overrides: str, name: str) -> Build:
    out = folder / "build" / name
    build_spec(load(folder / "tiny.yaml", list(overrides)), out)
    return open_build(out)


def test_a_build_of_a_pipeline_is_the_same_stage(tmp_path: Path) -> None:
    write_spec(tmp_path)
    one = build_of(tmp_path, name="one")
    two = build_of(tmp_path, "plan.mesh={pp: 2, dp: 2}", "plan.schedule={kind: zb-v}", name="two")
    assert one.manifest["stages"] == two.manifest["stages"]
    folder = two.path / "stages" / "pretrain"
    assert len(read_schedules(folder)) == 2
    described = json.loads((folder / "pipeline.json").read_text())
    assert described["where"] == [0, 1, 1, 0]
    assert described["params"]["embed.weight"] == [0]


CORE = (Case("t5", "1f1b", 4), Case("gpt2_deep", "interleaved", 4), Case("gpt2_deep", "pp+zero3-zb-v", 4))


@pytest.mark.dist
def test_a_pipeline_trains_as_one_process_does() -> None:
    found = run(CORE, tell=False)
    limits = {str(c): TOLERANCE[c.dtype] for c in CORE}
    assert set(found) == set(limits)
    assert {n: e for n, e in found.items() if not isinstance(e, float) or e > limits[n]} == {}
