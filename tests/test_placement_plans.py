"""Placements of the library's models: the plans that a person would write are found, and count as they should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

from specc.compiler.elaborate import elaborate
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.placement import solve
from specc.compiler.placement.cost import collectives
from specc.compiler.placement.explain import explain
from specc.compiler.placement.place import Options, place, plan_of
from specc.compiler.placement.placed import Placed, PlacedBody
from specc.compiler.placement.reshard import moves
from specc.compiler.placement.types import Axis, Mesh, R, S, fits
from specc.compiler.program import Program
from specc.spec.errors import SpecError
from specc.spec.spec import load
from tests.pace import within

Golden = Callable[[str, str], None]
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


@cache
def large(name: str) -> Program:
    program = elaborate(load(Path(__file__).parent.parent / "examples" / f"{name}.yaml"), objective="causal_lm")
    return fuse_linear_cross_entropy(prune(program, []))


def named(placed: Placed, axis: str) -> dict[str, str]:
    """The strategy of each weighted step and of attention of a layer along an axis."""
    a = [x.name for x in placed.mesh.axes].index(axis)
    wanted = ("linear", "attend")
    return {e.eqn.path: e.strategies[a].name for e in placed.bodies["layers"].eqns if e.eqn.op in wanted}


MEGATRON = {
    "attention.q": "split:H", "attention.k": "split:K", "attention.v": "split:K", "attention.attend": "split:H",
    "attention.out": "sum:H", "glu.gate": "split:F", "glu.up": "split:F", "glu.down": "sum:F",
}  # fmt: skip


def test_tensor_parallel_sums_twice_each_way(golden: Golden) -> None:
    placed = small_llama(mesh(dp=2, tp=2), Options(sequence_parallel=False))
    golden("placed_tp.txt", str(placed))
    assert named(placed, "tp") == MEGATRON
    assert counts(placed.bodies["layers"]) == ({"all-reduce": 2}, {"all-reduce": 2})


def test_sequence_parallel_gathers_and_scatters_twice_each_way(golden: Golden) -> None:
    placed = small_llama(mesh(tp=2), Options(sequence_parallel=True))
    golden("placed_tp_sp.txt", str(placed))
    twice = {"all-gather": 2, "reduce-scatter": 2}
    assert counts(placed.bodies["layers"]) == (twice, twice)


def test_ulysses_exchanges_four_times_each_way(golden: Golden) -> None:
    placed = small_llama(mesh(cp=2), Options(context="ulysses"))
    golden("placed_ulysses.txt", str(placed))
    assert counts(placed.bodies["layers"]) == ({"all-to-all": 4}, {"all-to-all": 4})


def test_gathered_keys_and_values_come_once_each(golden: Golden) -> None:
    placed = small_llama(mesh(dp=2, cp=2), Options(context="gather"))
    golden("placed_gather_kv.txt", str(placed))
    assert counts(placed.bodies["layers"]) == ({"all-gather": 2}, {"reduce-scatter": 2})


def test_a_ring_moves_nothing_between_equations() -> None:
    placed = small_llama(mesh(cp=2), Options(context="ring"))
    assert named(placed, "cp")["attention.attend"] == "ring"
    assert counts(placed.bodies["layers"]) == ({}, {})


def test_zero_3_gathers_each_parameter_and_scatters_its_gradient(golden: Golden) -> None:
    placed = small_llama(mesh(dp=2), Options(zero=3))
    golden("placed_zero3.txt", str(placed))
    assert placed.gather_each_use
    assert placed.reduce_each_microbatch
    assert counts(placed.bodies["layers"]) == ({}, {})
    for call in placed.program.calls:
        for path, use in zip(call.params, placed.bodies[call.body].params, strict=True):
            ((_, _, forward, backward),) = collectives(placed.params[path], use)
            assert (forward, backward) == ("all-gather", "reduce-scatter")


def test_hybrid_zero_keeps_a_whole_copy_for_each_replica() -> None:
    placed = small_llama(mesh(dp_replicate=2, dp=2), Options(zero=3))
    assert {at[0].kind for at in placed.params.values()} == {"R"}
    assert {at[1].kind for at in placed.params.values()} == {"S"}


def test_zero_splits_a_dim_that_no_inner_axis_splits() -> None:
    """Else the inner axis would be gathered with it at each use."""
    placed = small_llama(mesh(dp=2, tp=2), Options(zero=3))
    for at in placed.params.values():
        assert at[0].kind == "R" or at[1].kind == "R" or at[0].dim != at[1].dim


@pytest.mark.parametrize("axes", [{"dp": 2}, {"tp": 2}, {"cp": 2}, {"dp": 2, "tp": 2}], ids=str)
@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "t5", "cogvlm_expert", "sd3"])
def test_the_tracers_are_placed(name: str, axes: dict[str, int]) -> None:
    placed = place(program_of(name), mesh(**axes), {"B": 4, "S": 64, "T": 64})
    check(placed)
    assert str(placed) == str(place(program_of(name), mesh(**axes), {"B": 4, "S": 64, "T": 64}))


def check(placed: Placed) -> None:
    """Every edge has a way, values between calls lie alike on both sides, and the loss is whole."""
    lies = dict(placed.inputs)
    for call in placed.program.calls:
        b = placed.bodies[call.body]
        assert [lies[i] for i in call.ins] == list(b.ins)
        lies |= zip(call.outs, b.outs, strict=True)
        for path, use in zip(call.params, b.params, strict=True):
            assert moves(placed.params[path], use) is not None
    for b in placed.bodies.values():
        layouts, types = b.layouts(), b.body.types()
        for e in b.eqns:
            for i, n in enumerate(e.eqn.ins):
                at = e.takes(i)
                assert n is None or (at is not None and moves(layouts[n], at) is not None)
        assert all(fits(types[n], at, placed.mesh, placed.sizes) for n, at in layouts.items())
    assert placed.program.loss is None or set(lies[placed.program.loss]) == {R}


def test_no_layer_sums_position_biases_or_conditions_over_the_batch_axis() -> None:
    """What has no batch dim stays V along it; its gradient is summed once, where its parameters' are."""
    for name in ("t5", "sd3", "deepseek_v2"):
        placed = place(program_of(name), mesh(dp=2), {"B": 4, "S": 64, "T": 64})
        for body in placed.bodies:
            if body not in ("stem", "head"):
                assert counts(placed.bodies[body]) == ({}, {}), (name, body)


def test_experts_are_split_with_their_weights() -> None:
    placed = place(program_of("deepseek_v2"), mesh(dp=2, ep=2), SIZES)
    check(placed)
    used = {e.eqn.op: e.strategies[1].name for e in placed.bodies["layers_1"].eqns if e.strategies[1].name == "experts"}
    assert set(used) == {"dispatch", "row_gates", "grouped_linear", "combine"}
    assert placed.params["layers.1.moe.experts.gate.weight"] == (R, S(0))
    assert counts(placed.bodies["layers_1"]) == ({}, {})


def test_a_free_axis_becomes_tensor_and_sequence_parallel_for_405b() -> None:
    """One sequence a group of ranks: weights are larger than what passes through them."""
    placed = place(large("llama3-405b"), mesh(dp=16, auto=8), {"B": 16, "S": 8192}, Options(itemsize=2))
    assert named(placed, "auto") == MEGATRON
    assert placed.bodies["layers"].ins[0] == (S(0), S(1))


def test_a_free_axis_becomes_data_parallel_where_all_fits() -> None:
    options = Options(zero="auto", itemsize=2, capacity=160e9, recompute=True)
    placed = place(large("llama3-8b"), mesh(auto=8), {"B": 8, "S": 8192}, options)
    assert set(named(placed, "auto").values()) == {"split:B"}
    assert {at for p, at in placed.params.items() if p.startswith("layers")} == {(R,)}
    assert not placed.gather_each_use


def test_a_free_axis_splits_a_long_sequence() -> None:
    options = Options(zero="auto", itemsize=2, capacity=160e9, recompute=True)
    placed = place(large("llama3-8b"), mesh(auto=8), {"B": 1, "S": 1 << 18}, options)
    assert placed.bodies["layers"].ins[0] == (S(1),)
    assert named(placed, "auto")["glu.gate"] == "split:S"


def test_little_memory_brings_zero_3() -> None:
    options = Options(zero="auto", itemsize=2, recompute=True, capacity=20e9)
    placed = place(large("llama3-8b"), mesh(dp=64), {"B": 64, "S": 8192}, options)
    assert placed.gather_each_use
    roomy = place(
        large("llama3-8b"), mesh(dp=64), {"B": 64, "S": 8192}, Options(zero="auto", itemsize=2, capacity=2e11)
    )
    assert not roomy.gather_each_use
    assert set(roomy.params.values()) == {(R,)}


@pytest.mark.parametrize("capacity", [120e9, 100e9, 80e9, 60e9, 45e9])
def test_a_plan_fills_the_memory_that_there_is(capacity: float) -> None:
    """No jump from all weights whole to all weights split."""
    options = Options(zero="auto", itemsize=2, recompute=True, capacity=capacity)
    plan = plan_of(large("llama3-8b"), mesh(auto=8), {"B": 8, "S": 8192}, options)
    assert capacity * 0.6 < plan.nbytes <= capacity


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(SpecError) as e:
        place(large("llama3-405b"), mesh(dp=2), {"B": 2, "S": 8192}, Options(zero="auto", itemsize=2))
    assert e.value.codes == ("S504",)


@pytest.mark.parametrize(
    ("axes", "sizes", "text", "hint"),
    [
        ({"dp": 3}, SIZES, "'B' of 4 does not divide over dp=3", "dp: 2, or B: 6"),
        ({"cp": 6}, SIZES, "'S' of 64 does not divide over cp=6", "cp: 4, or S: 66"),
        ({"tp": 8}, SIZES, "'H' of 4 does not divide over tp=8", "tp: 4, or H: 8"),
    ],
)
def test_a_dim_that_does_not_divide_is_named(axes: dict[str, int], sizes: dict[str, int], text: str, hint: str) -> None:
    with pytest.raises(SpecError) as e:
        place(program_of("llama", *SMALL), mesh(**axes), sizes)
    assert e.value.codes == ("S501",)
    assert text in str(e.value)
    assert hint in str(e.value)


@pytest.mark.parametrize("limit", [3000, 10])
def test_a_body_with_too_large_tables_gets_fewer_choices_or_is_refused(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = plan_of(program_of("llama", *SMALL), mesh(tp=2, auto=2), SIZES)
    monkeypatch.setattr(solve, "MAX_TABLE", limit)
    if limit < 1000:
        with pytest.raises(SpecError) as e:
            small_llama(mesh(tp=2, auto=2), Options())
        assert e.value.codes == ("S502",)
        return
    check(small_llama(mesh(tp=2, auto=2), Options()))
    assert exact.seconds <= plan_of(program_of("llama", *SMALL), mesh(tp=2, auto=2), SIZES).seconds * 1.001


def test_three_free_axes_are_refused() -> None:
    axes = Mesh((Axis("a", 2), Axis("b", 2), Axis("c", 2)))
    with pytest.raises(SpecError) as e:
        place(program_of("llama", *SMALL), axes, SIZES)
    assert e.value.codes == ("S502",)


def test_batch_and_experts_over_more_ranks_than_sequences_are_refused() -> None:
    with pytest.raises(SpecError) as e:
        place(program_of("deepseek_v2"), mesh(dp=4, ep=4), SIZES)
    assert e.value.codes == ("S501",)


def test_pins_hold_or_are_refused() -> None:
    pins = {"layers.attention.k": {"tp": "split:E"}}
    assert named(small_llama(mesh(tp=2), Options(pins=pins)), "tp")["attention.k"] == "split:E"
    for wrong in (
        {"layers.attention.x": {"tp": "rep"}},
        {"layers.attention.k": {"tp": "split:X"}},
        {"layers.attention.k": {"pp": "rep"}},
    ):
        with pytest.raises(SpecError) as e:
            small_llama(mesh(tp=2), Options(pins=wrong))
        assert e.value.codes == ("S505",)


def test_explain_says_what_else_there_was() -> None:
    options = Options(itemsize=2, zero=3)
    placed = place(large("llama3-405b"), mesh(dp=16, tp=8), {"B": 16, "S": 8192}, options)
    step = explain(placed, "layers.glu.gate", options)
    assert "* [dp=split:B tp=split:F]" in step
    assert "moved from dp:S(B) tp:S(S)" in step
    parameter = explain(placed, "layers.0.glu.gate.weight", options)
    assert "* kept dp:S(D) tp:S(F)" in parameter
    with pytest.raises(SpecError, match="no step is called"):
        explain(placed, "layers.glu.gat", options)


@pytest.mark.alone
def test_405b_on_2048_ranks_is_placed_in_seconds() -> None:
    program = large("llama3-405b")
    with within(3.0):
        placed = place(program, mesh(dp=256, tp=8), {"B": 256, "S": 8192}, Options(itemsize=2, zero=3))
    assert named(placed, "tp") == MEGATRON
    check(placed)
