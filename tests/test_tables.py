"""What is taken out of graphs before Inductor makes C++ of them: the same numbers, and only where it pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.graphs import from_json, to_json
from specc.runtime.compile import callable_of
from specc.runtime.rows import ROWS, sum_rows, with_row_sums
from specc.runtime.tables import without_tables

Function = Callable[..., Sequence[Tensor]]


def loaded(f: Function, *xs: Tensor) -> fx.GraphModule:
    return from_json(to_json(make_fx(f, tracing_mode="fake")(*xs)))


def names(gm: fx.GraphModule) -> list[str]:
    return [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(("dims", "keep", "replaced"), [
    ([0, 1], False, True), ([0, 1], True, True), ([-2, -3], False, True), ([0], False, False), ([2], False, False),
    ([0, 1, 2], False, False), ([1], False, True), ([1], True, True), ([1, 2], False, False),
])  # fmt: skip
def test_sums_over_dims_before_the_last_are_an_op(dims: list[int], keep: bool, replaced: bool) -> None:
    x = torch.randn(4, ROWS, 24)
    gm = with_row_sums(loaded(lambda x: [(x * 2.0).sum(dims, keepdim=keep)], x))
    assert ("specc.sum_rows.default" in names(gm)) == replaced
    torch.testing.assert_close(gm(x)[0], (x * 2.0).sum(dims, keepdim=keep))


def test_few_rows_and_other_dtypes_are_left_alone() -> None:
    few, wide = torch.randn(ROWS - 1, 8), torch.randn(ROWS, 8)
    assert "specc.sum_rows.default" not in names(with_row_sums(loaded(lambda x: [x.sum(0)], few)))
    assert "specc.sum_rows.default" not in names(with_row_sums(loaded(lambda x: [x.sum(0, dtype=torch.float64)], wide)))


def test_the_op_says_its_shape() -> None:
    torch.library.opcheck(sum_rows, (torch.randn(3, 8, 4),), test_utils=("test_schema", "test_faketensor"))


def test_a_gradient_that_an_op_does_not_have_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="sum_rows has no gradient"):
        sum_rows(torch.randn(3, 8, 4, requires_grad=True)).sum().backward()


def turned(x: Tensor, at: Tensor) -> list[Tensor]:
    """x [8 heads 6 4] turned by angles [6 4]."""
    angle = at[:, None] * torch.arange(4.0)
    return [x * angle.cos() + x * angle.sin(), angle]


def test_sines_of_positions_are_tables() -> None:
    x, at = torch.randn(8, 6, 4), torch.arange(6.0)
    tables, rest = without_tables(loaded(turned, x, at))
    assert tables is not None
    assert {"aten.cos.default", "aten.sin.default"} <= set(names(tables))
    assert not {"aten.cos.default", "aten.sin.default"} & set(names(rest))
    for found, wanted in zip(rest(x, at, *tables(x, at)), turned(x, at), strict=True):
        assert torch.equal(found, wanted)


def test_sines_that_nothing_larger_reads_stay() -> None:
    gm = loaded(lambda x: [x.cos() * 2.0 + 1.0], torch.randn(6, 4))
    assert without_tables(gm) == (None, gm)


def test_what_products_or_other_ranks_make_is_no_table() -> None:
    x, w = torch.randn(6, 4), torch.randn(4, 4)
    gm = loaded(lambda x, w: [(x @ w).sin()[None] * torch.ones(8, 1, 1), x], x, w)
    assert without_tables(gm) == (None, gm)


def test_a_product_that_reads_sines_makes_them_no_table() -> None:
    gm = loaded(lambda x, w: [x.sin() @ w], torch.randn(6, 4), torch.randn(4, 32))
    assert without_tables(gm) == (None, gm)


def test_a_sum_of_everything_is_left_alone() -> None:
    gm = with_row_sums(loaded(lambda x: [x.sum(), x[0, 0].sum([])], torch.randn(ROWS, 4)))
    assert "specc.sum_rows.default" not in names(gm)


def test_what_has_nothing_to_fuse_is_not_compiled() -> None:
    gm = loaded(lambda x, y: [(x @ y).t()], torch.randn(8, 4), torch.randn(4, 6))
    assert callable_of(gm, compiled=True) is gm  # type: ignore[comparison-overlap]


@pytest.mark.slow
def test_the_compiled_graph_gives_what_the_graph_gives(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def f(x: Tensor, at: Tensor) -> list[Tensor]:
        y = turned(x, at)[0]
        return [y, y.exp().sum([0, 1])]

    x, at = torch.randn(32, 6, 4), torch.arange(6.0)
    gm = loaded(f, x, at)
    for found, wanted in zip(callable_of(gm, compiled=True)([x, at]), f(x, at), strict=True):
        torch.testing.assert_close(found, wanted)
