"""Prices of moves and of work."""

from __future__ import annotations

import math

import pytest

from specc.compiler.placement.cost import H100, NVLINK, Links, Machine, edge_cost, work_cost
from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.strategies import strategies
from specc.compiler.placement.types import Axis, Mesh, P, Place, R, S, V
from specc.compiler.program import Eqn
from specc.compiler.types import Dim, TensorType

B, D = Dim("B", 64), Dim("D", 1024)
X = TensorType((B, D))
FREE = Links(node=8, near=1e9, far=1e8, near_latency=0.0, far_latency=0.0)
MACHINE = Machine(Mesh((Axis("far", 4), Axis("near", 4))), links=FREE, itemsize=2)
BYTES = 64 * 1024 * 2


@pytest.mark.parametrize(
    ("src", "dst", "sent"),
    [
        (S(0), R, 3 / 4), (S(0), V, 2 * 3 / 4), (P, R, 2 * 3 / 4), (P, V, 4 * 3 / 4), (P, S(0), 2 * 3 / 4),
        (S(0), S(1), 2 * 3 / 16), (R, V, 2 * 3 / 4), (R, S(0), 3 / 4), (V, S(0), 0), (V, R, 0),
    ],
)  # fmt: skip
def test_a_move_sends_what_its_collectives_do_both_ways(src: Place, dst: Place, sent: float) -> None:
    near = edge_cost(X, (R, src), (R, dst), MACHINE, {})
    assert near == pytest.approx(sent * BYTES / 1e9)
    assert edge_cost(X, (src, R), (dst, R), MACHINE, {}) == pytest.approx(10 * near)


def test_what_another_axis_splits_is_sent_in_part() -> None:
    assert edge_cost(X, (S(1), S(0)), (S(1), R), MACHINE, {}) == pytest.approx(3 / 4 * BYTES / 4 / 1e9)


def test_there_is_no_way_to_a_sum() -> None:
    assert edge_cost(X, (R, R), (R, P), MACHINE, {}) == math.inf


def test_whole_numbers_and_inputs_have_no_backward() -> None:
    assert edge_cost(TensorType((B,), "int"), (R, R), (R, S(0)), MACHINE, {}) == 0
    assert edge_cost(X, (R, R), (R, V), MACHINE, {}, gradient=False) == 0


def test_ranks_of_one_node_are_the_innermost() -> None:
    machine = Machine(Mesh((Axis("dp", 4), Axis("cp", 2), Axis("tp", 4))), links=NVLINK)
    assert [machine.is_near(a) for a in range(3)] == [False, True, True]


def test_split_work_is_shared_and_replicated_work_is_not() -> None:
    big = [TensorType((Dim("B", 1 << 16), D)), TensorType((D, Dim("F", 4096)))]
    e = Eqn("linear", ("x", "w"), ("y",), (TensorType((big[0].dims[0], big[1].dims[1])),), {}, "linear")
    machine = Machine(Mesh((Axis("tp", 4),)), H100)
    each = {s.name: work_cost(e, big, [s], machine, {}) for s in strategies(e, big, Axis("tp", 4), {})}
    launches = 3 * H100.launch
    assert each["rep"] - launches == pytest.approx(4 * (each["split:F"] - launches))
    assert each["sum:D"] < each["rep"]


def test_rings_share_a_causal_attention_and_queries_in_order_do_not() -> None:
    q = TensorType((Dim("B", 1), Dim("S", 1 << 15), Dim("H", 8), Dim("E", 128)))
    e = Eqn("attend", ("q", "k", "v"), ("y",), (q,), {"causal": True}, "attend")
    machine = Machine(Mesh((Axis("cp", 4),)), H100, Links(8, 1e30, 1e30, 0.0, 0.0))

    def seconds(name: str) -> float:
        s: Strategy = next(s for s in strategies(e, [q] * 3, Axis("cp", 4), {}) if s.name == name)
        return work_cost(e, [q] * 3, [s], machine, {}) - 3 * H100.launch

    assert seconds("ring") == pytest.approx(seconds("split:H"))
    assert seconds("gather_kv") == pytest.approx(seconds("ring") * 7 / 4)
