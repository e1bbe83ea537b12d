"""Kernels on a mesh: cut from what a rank computes between moves, and called by the graphs of its ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from specc.compiler.build import build_spec
from specc.compiler.kernels.emit import Cuts
from specc.compiler.kernels.on_mesh import is_local, is_part_of_attention
from specc.compiler.lower.spread import Setting
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.placement.place import place
from specc.compiler.placement.placed import Placed, PlacedEqn, Strategy
from specc.compiler.placement.types import Axis, Mesh, Place, R, S
from specc.compiler.program import Eqn
from specc.compiler.types import Dim, TensorType
from specc.runtime.built import open_build
from specc.runtime.kernels import load_kernels
from specc.spec.spec import load
from tests.grid.__main__ import TOLERANCE, run
from tests.grid.models import TRACERS
from tests.grid.plans import PLANS
from tests.grid.processes import spawn
from tests.grid.run import Case
from tests.test_kernels_build import GPU
from tests.test_placed_build import build_of, one_step
from tests.training import write_spec

KINDS = ("attention", "cross_entropy", "grouped", "rope", "rms_norm", "expr")


@cache
def with_kernels(model: str, plan: str) -> Placed:
    """The program on two ranks."""
    tracer, how = TRACERS[model], PLANS[plan]
    placed = place(sink_masks(tracer.program()), how.mesh(2), tracer.sizes, how.options)
    whole = Cuts(placed, tracer.sizes, torch.float32).applied(set())
    assert isinstance(whole, Placed)
    return whole


def kinds(model: str, plan: str, body: str) -> set[str]:
    """What kinds of kernels a rank calls in a body."""
    ops = [e.eqn.op for e in with_kernels(model, plan).bodies[body].eqns]
    return {kind for kind in KINDS if any(op.startswith(f"{kind}_") and len(op.rpartition("_")[2]) == 10 for op in ops)}


@pytest.mark.parametrize(
    ("model", "plan", "body", "expected"),
    [
        ("llama", "zero3", "layers", {"attention", "rope", "rms_norm", "expr"}),
        ("llama", "zero3", "head", {"cross_entropy", "rms_norm"}),
        ("llama", "tp+sp", "layers", {"attention", "rope", "rms_norm", "expr"}),
        ("llama", "tp", "head", {"cross_entropy", "rms_norm"}),  # of a rank's part of the vocabulary
        ("llama", "ring", "layers", {"attention", "rope", "rms_norm", "expr"}),  # of the parts that meet
        ("llama", "gather-kv", "layers", {"attention", "rope", "rms_norm", "expr"}),
        ("llama", "ulysses", "layers", {"attention", "rope", "rms_norm", "expr"}),  # queries are whole there
    ],
)
def test_a_rank_calls_kernels_for_what_it_does_alone(model: str, plan: str, body: str, expected: set[str]) -> None:
    assert kinds(model, plan, body) == expected


def test_experts_of_a_rank_are_a_kernel() -> None:
    bodies = with_kernels("deepseek_v2", "ep").bodies
    assert any("grouped" in kinds("deepseek_v2", "ep", body) for body in bodies)


B, T, D = Dim("B", 4), Dim("S", 8), Dim("D", 16)
X = TensorType((B, T, D))


def equation(op: str, strategy: str, at: Place) -> PlacedEqn:
    return PlacedEqn(Eqn(op, ("x",), ("y",), (X,), {}, ""), (Strategy(strategy, (at,), (at,)),))


@pytest.mark.parametrize(
    ("op", "strategy", "at", "local"),
    [
        ("expr", "split:S", S(1), True), ("expr", "rep", R, True), ("mean", "sum:D", S(2), False),
        ("dropout", "split:B", S(0), True), ("dropout", "split:S", S(1), False),
        ("mask", "split:B", S(0), True), ("mask", "split:S", S(1), False), ("linear_cross_entropy", "vocab", R, False),
    ],
)  # fmt: skip
def test_what_looks_beyond_its_part_is_no_kernel(op: str, strategy: str, at: Place, local: bool) -> None:
    assert is_local(equation(op, strategy, at), {"x": X}, {}) == local


def test_a_sequence_in_zigzag_is_in_no_order() -> None:
    whole = {"x": TensorType((B, T, D, Dim("E", 2)))}
    attend = equation("attend", "rep", R)
    attend = replace(attend, eqn=replace(attend.eqn, ins=("x", "x", "x")))
    attend = replace(attend, strategies=(Strategy("rep", (R, R, R), (R,)),))
    assert is_local(attend, whole, {})
    assert not is_local(attend, whole, {"S": 2})


SEQUENCES = Mesh((Axis("ring", 2, "sequence"), Axis("cp", 2, "sequence")))


@pytest.mark.parametrize(
    ("along_ring", "along_cp", "zigzag", "is_part"),
    [
        ("ring", "rep", {}, True), ("ring", "rep", {"S": 2}, True), ("ring", "ring", {}, False),
        ("rep", "gather_kv", {}, True), ("rep", "gather_kv", {"S": 2}, False), ("ring", "gather_kv", {}, False),
        ("rep", "rep", {}, False),
    ],
)  # fmt: skip
def test_a_kernel_takes_parts_of_attention_that_are_runs(
    along_ring: str, along_cp: str, zigzag: dict[str, int], is_part: bool
) -> None:
    lies = {"ring": (S(1), S(1), S(1)), "gather_kv": (S(1), R, R), "rep": (R, R, R)}
    e = PlacedEqn(
        Eqn("attend", ("x", "x", "x"), ("y",), (X,), {}, ""),
        tuple(Strategy(name, lies[name], (lies[name][0],)) for name in (along_ring, along_cp)),
    )
    types = {"x": TensorType((B, T, D, Dim("E", 2)))}
    assert is_part_of_attention(e, types, Setting(SEQUENCES, (), {}, zigzag)) == is_part


@pytest.mark.dist
@pytest.mark.slow
def test_a_mesh_with_kernels_trains_as_one_process_does() -> None:
    """`python -m tests.grid --kernels` has all models and plans."""
    plans = ("tp+sp", "ring", "gather-kv")
    found = run([Case("llama", plan, 2, torch.float32, kernels=True) for plan in plans], tell=False)
    assert all(isinstance(e, float) and e <= TOLERANCE[torch.float32] for e in found.values()), found


@pytest.mark.slow
def test_the_kernels_of_a_mesh_are_those_of_its_build(tmp_path: Path) -> None:
    mesh = "plan.mesh={ring: 2, tp: 2}"
    words = ["plan.kernels=triton", "plan.cluster.device=h100-sxm", mesh, "model.freeze=['embed.*']"]
    build_spec(load(write_spec(tmp_path), words), tmp_path / "build")
    stage = open_build(tmp_path / "build").stages["pretrain"]
    graph = (stage.path / "graphs" / "layers.fwd.txt").read_text()
    assert "specc.attention_part_" in graph
    assert "aten.bitwise_and" not in graph, "no mask is made"
    assert "specc.cross_entropy_part_" in (stage.path / "graphs" / "head.fwd.txt").read_text()
    load_kernels(tmp_path / "build", stage.spec, stage.compute)
    covers = json.loads((stage.path / "kernels.json").read_text())
    assert set(covers) == {"stem", "layers", "layers_2", "head"}, "the first layer passes no gradient on"


@pytest.mark.dist
@pytest.mark.slow
def test_a_build_with_kernels_for_parts_of_a_vocabulary_gives_the_same_gradients(tmp_path: Path) -> None:
    mesh = "plan.mesh={dp: 2, tp: 2}"
    aten, kernels = (
        spawn(one_step, 4, str(build_of(tmp_path, mesh, *words, name=name).path))
        for name, words in (("aten", ()), ("kernels", GPU))
    )
    for (losses, grads), (expected, reference) in zip(kernels, aten, strict=True):
        assert losses == pytest.approx(expected, rel=1e-6)
        for name, g in reference.items():
            assert grads[name] == pytest.approx(g, rel=1e-5, abs=1e-6), name
