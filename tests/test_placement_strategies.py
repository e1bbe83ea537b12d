"""What each op can do along an axis, and that every strategy of every model's equations is well formed."""

from __future__ import annotations

import pytest

from specc.compiler.ops import OPS
from specc.compiler.placement.linearity import is_linear
from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.strategies import FAMILIES, strategies
from specc.compiler.placement.types import Axis, P, R, S, V
from specc.compiler.program import Body, Eqn
from specc.compiler.types import Dim, TensorType
from specc.spec.expr import parse
from tests.test_placement_plans import SIZES, program_of

TWO = Axis("x", 2)
D, E, F, H, K, N, Q = (Dim(n, s) for n, s in zip("DEFHKNQ", (8, 4, 6, 4, 2, 4, 3), strict=True))
B, SEQ, KEYS, T = Dim("B", 2), Dim("S", 4), Dim("keys", 4), Dim("T", 4)


def f(*dims: Dim) -> TensorType:
    return TensorType(dims)


def i(*dims: Dim) -> TensorType:
    return TensorType(dims, "int")


def found(op: str, ins: list[TensorType | None], outs: list[TensorType], n: int = 2, **attrs: object) -> list[str]:
    """`name: operands -> results`, rep left out."""
    e = Eqn(op, tuple(f"v{k}" if t else None for k, t in enumerate(ins)), tuple(f"o{k}" for k in range(len(outs))),
            tuple(outs), attrs, op)  # fmt: skip
    return [text(s) for s in strategies(e, ins, Axis("x", n), {}) if s.name != "rep"]


def text(s: Strategy) -> str:
    return f"{s.name}: {' '.join(str(p or '-') for p in s.ins)} -> {' '.join(map(str, s.outs))}"


def test_every_op_has_a_family() -> None:
    assert set(FAMILIES) == set(OPS)


def test_a_product_is_split_by_every_letter_of_its_rule() -> None:
    assert found("linear", [f(B, SEQ, D), f(D, H, E)], [f(B, SEQ, H, E)]) == [
        "split:B: S0 V -> S0", "split:S: S1 V -> S1", "sum:D: S2 S0 -> P", "split:H: V S1 -> S2",
        "split:E: V S2 -> S3", "linear:0: P V -> P", "linear:1: V P -> P",
    ]  # fmt: skip


def test_a_bias_is_added_once_to_a_sum_and_keeps_partial_sums_out() -> None:
    every = found("linear", [f(B, D), f(D, F), f(F)], [f(B, F)])
    assert every == ["split:B: S0 V V -> S0", "sum:D: S1 S0 V -> P", "split:F: V S1 S0 -> S1"]


def test_a_dim_that_leaves_a_rest_is_not_split() -> None:
    assert found("linear", [f(B, Q), f(Q, F)], [f(B, F)])[1] == "split:F: V S1 -> S1"


def test_a_norm_leaves_its_own_dim_whole() -> None:
    assert found("rms_norm", [f(B, SEQ, D), f(D)], [f(B, SEQ, D)]) == ["split:B: S0 V -> S0", "split:S: S1 V -> S1"]


def test_attention_by_heads_queries_and_rings() -> None:
    ins = [f(B, SEQ, H, E), f(B, SEQ, H, E), f(B, SEQ, H, E), TensorType((B, SEQ, KEYS), "bool")]
    assert found("attend", ins, [f(B, SEQ, H, E)]) == [
        "split:B: S0 S0 S0 S0 -> S0", "split:H: S2 S2 S2 R -> S2", "gather_kv: S1 V V S1 -> S1",
        "ring: S1 S1 S1 S1 -> S1",
    ]  # fmt: skip


def test_few_kv_heads_stay_whole_where_query_heads_split() -> None:
    ins = [f(B, SEQ, H, E), f(B, SEQ, K, E), f(B, SEQ, K, E)]
    assert "kv_heads: S2 V V -> S2" in found("attend", ins, [f(B, SEQ, H, E)], 4)
    assert not any(s.startswith("kv_heads") for s in found("attend", ins, [f(B, SEQ, H, E)], 2))


def test_cross_attention_has_no_ring_and_takes_bias_by_heads() -> None:
    ins = [f(B, SEQ, H, E), f(B, T, H, E), f(B, T, H, E), None, f(SEQ, T, H)]
    assert found("attend", ins, [f(B, SEQ, H, E)]) == [
        "split:B: S0 S0 S0 - V -> S0", "split:H: S2 S2 S2 - S2 -> S2", "gather_kv: S1 V V - S0 -> S1",
    ]  # fmt: skip


def test_a_mask_is_cut_by_queries_with_keys_whole() -> None:
    out = TensorType((B, SEQ, KEYS), "bool")
    every = found("mask", [i(B, SEQ), i(B, SEQ)], [out], names=["q.doc", "k.doc"])
    assert every == ["split:B: S0 S0 -> S0", "split:S: S1 R -> S1"]


def test_losses_give_parts_of_rows_or_the_whole_from_parts_of_the_vocabulary() -> None:
    every = found("linear_cross_entropy", [f(B, SEQ, D), f(D, F), i(B, SEQ)], [f()])
    assert every == ["split:B: S0 V S0 -> P", "split:S: S1 V S1 -> P", "vocab: V S1 R -> R"]
    assert "vocab: S1 R -> R" in found("cross_entropy", [f(B, F), i(B)], [f()])


def test_a_table_by_rows_gives_a_sum() -> None:
    assert found("embedding", [i(B, SEQ), f(F, D)], [f(B, SEQ, D)]) == [
        "split:B: S0 V -> S0", "split:S: S1 V -> S1", "split:D: R S1 -> S2", "rows: R S0 -> P",
    ]  # fmt: skip


def test_rearrange_splits_outermost_letters() -> None:
    flat = Dim("flat", 32)
    assert found("rearrange", [f(B, flat)], [f(B, H, D)], pattern="b (h d) -> b h d", dims={"d": D}) == [
        "split:B: S0 -> S0", "split:H: S1 -> S1", "linear:0: P -> P",
    ]  # fmt: skip
    given = found("rearrange", [f(B, flat)], [f(B, H, D)], pattern="b (h d) -> b h d", dims={"h": H})
    assert given == ["split:B: S0 -> S0", "linear:0: P -> P"]


def test_a_mean_over_a_split_dim_gives_parts() -> None:
    assert found("mean", [f(B, SEQ)], [f(B)], over=[SEQ]) == [
        "split:B: S0 -> S0", "sum:S: S1 -> P", "linear:0: P -> P",
    ]  # fmt: skip


def test_the_largest_of_a_split_dim_is_of_it_gathered() -> None:
    every = found("max", [f(B, SEQ)], [f(B)], over=[SEQ])
    assert every == ["split:B: S0 -> S0"]


def test_concat_repeats_what_lacks_a_dim_and_keeps_the_joined_one() -> None:
    every = found("concat", [f(B, H, D), f(B, E)], [f(B, H, Dim("D + E", 12))], over=[D, E])
    assert every == ["split:B: S0 S0 -> S0", "split:H: S1 V -> S1", "linear: P P -> P"]


def test_experts_take_rows_where_they_go() -> None:
    rows = Dim("B * S * K", 16)
    every = found("dispatch", [f(B, SEQ, D), i(B, SEQ, K)], [f(rows, D), i(rows), i(N)])
    assert every == [
        "split:B * S * K: S0 S0 -> S0 S0 R", "split:B * S * K: S1 S1 -> S0 S0 R", "split:D: S2 R -> S1 R R",
        "experts: S0 S0 -> S0 S0 S0",
    ]  # fmt: skip
    assert found("row_gates", [f(B, SEQ, K), i(rows)], [f(rows)]) == [
        "split:B * S * K: S0 S0 -> S0", "split:B * S * K: S1 S0 -> S0", "linear:0: P R -> P", "experts: S0 S0 -> S0",
    ]  # fmt: skip
    assert found("combine", [f(rows, D), i(rows), i(B, SEQ, K)], [f(B, SEQ, D)]) == [
        "split:B: S0 S0 S0 -> S0", "split:S: S0 S0 S1 -> S1", "split:D: S1 R R -> S2",
        "linear:0: P R R -> P", "experts: S0 S0 S0 -> S0",
    ]  # fmt: skip
    assert "experts: S0 S0 S0 -> S0" in found("grouped_linear", [f(rows, D), i(N), f(N, D, F)], [f(rows, F)])


@pytest.mark.parametrize(
    ("formula", "names", "linear"),
    [
        ("x + y", {"x", "y"}, True), ("x + y", {"x"}, False), ("x * y", {"x"}, True), ("x * y", {"x", "y"}, False),
        ("-x / 3", {"x"}, True), ("3 / x", {"x"}, False), ("silu(x) * y", {"y"}, True), ("silu(x) * y", {"x"}, False),
        ("where(c, x, 0)", {"x"}, True), ("where(x, c, 0)", {"x"}, False), ("x + 1", {"x"}, False),
        ("x ** 2", {"x"}, False),
        ("(x - y) * 0.5", {"x", "y"}, True), ("x + 0.1 * y", {"x", "y"}, True), ("max(x, 0)", {"x"}, False),
    ],
)  # fmt: skip
def test_formulas_pass_sums_where_they_are_linear(formula: str, names: set[str], linear: bool) -> None:
    assert is_linear(parse(formula), names) is linear


@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "t5", "cogvlm_expert", "sd3", "gpt2", "bert", "glm"])
def test_strategies_of_a_model_fit_their_operands(name: str) -> None:
    """Splits divide, whole numbers are never V or P, a partial sum comes from a sum, and the first is `rep`."""
    for body in program_of(name).bodies.values():
        for e, ins in equations(body):
            every = strategies(e, ins, TWO, SIZES)
            assert every[0].name == "rep"
            assert len({(s.ins, s.outs, s.name == "experts") for s in every}) == len(every)
            for s in every:
                for t, p in (*zip(ins, s.ins, strict=True), *zip(e.types, s.outs, strict=True)):
                    assert (t is None) == (p is None)
                    if t is not None and p is not None:
                        assert p.kind != "S" or t.shape(SIZES)[p.dim] % 2 == 0
                        assert t.dtype == "float" or p.kind in "SR"
                if P in s.outs and P not in s.ins:
                    assert any(p is not None and p.kind == "S" for p in s.ins), text(s)


def equations(body: Body) -> list[tuple[Eqn, list[TensorType | None]]]:
    types = body.types()
    return [(e, [types[n] if n else None for n in e.ins]) for e in body.eqns]


def test_replication_is_r_and_v() -> None:
    e = Eqn("take", ("x", "i"), ("o",), (f(B, D),), {"over": N}, "take")
    first, second = strategies(e, [f(N, D), i(B)], TWO, {})[:2]
    assert (first.ins, first.outs) == ((R, R), (R,))
    assert (second.ins, second.outs) == ((V, R), (V,))
    assert S(0) != S(1)
