"""Attention as one op, by torch's products and by the C++ of compiled graphs, against the plain formula in fp64."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specc.compiler.build import lower
from specc.compiler.lower import attend
from specc.compiler.lower.attend import attention, attention_backward
from specc.compiler.lower.own import own_op
from specc.runtime import attention as own
from specc.runtime.compile import callable_of
from tests.text_models import model


def by_torch(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What other devices than CPUs do."""
    return attend._by_torch(q, k, v, mask, causal, scale), q.new_zeros(q.shape[0], q.shape[2], q.shape[1])


def gradients_by_torch(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, y: Tensor, sums: Tensor, dy: Tensor, causal: bool,
    scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    return attend._gradients_by_torch(q, k, v, mask, dy, causal, scale)


available = pytest.mark.skipif(not own.is_available(), reason="attention.cpp is for AVX2 and AVX-512")
BOTH = [pytest.param((attention, attention_backward), id="torch"),
        pytest.param((own.own_attention, own.own_attention_backward), id="own", marks=available)]  # fmt: skip
EACH = [  # who, and in what
    *(pytest.param(BOTH[0].values[0], t) for t in (torch.float64, torch.float32, torch.bfloat16)),
    *(pytest.param(BOTH[1].values[0], t, marks=available) for t in (torch.float32, torch.bfloat16)),
    *(pytest.param((by_torch, gradients_by_torch), t) for t in (torch.float64, torch.float32, torch.bfloat16)),
]
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.5e-2}  # relative to the largest
Pair = tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., tuple[Tensor, ...]]]


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    s = torch.einsum("bshe,bthe->bhst", q, k) * scale
    if causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if mask is not None:
        s = s.masked_fill(~mask[:, None], -math.inf)
    p = torch.softmax(s, -1).nan_to_num(0.0)  # a query that sees nothing
    return torch.einsum("bhst,bthf->bshf", p, v)


def documents(batch: int, n: int) -> Tensor:
    """Packed documents, other ones in each sequence; the last query sees nothing."""
    doc = (torch.arange(n)[None] + 11 * torch.arange(batch)[:, None]).div(37, rounding_mode="floor")
    seen = doc[:, :, None] == doc[:, None, :]
    seen[:, -1] = False
    return seen


def window(_: int, n: int) -> Tensor:
    """One mask for all sequences: 20 keys before and after; a block of queries sees nothing at all."""
    at = torch.arange(n)
    seen = (at[:, None] - at[None, :]).abs() <= 20
    seen[:110] = False
    return seen[None]


Masks = Callable[[int, int], Tensor]
CASES: list[tuple[int, int, int, int, int, int, bool, Masks | None]] = [
    # queries, keys, heads, kv heads, width, value width, causal, mask
    (96, 96, 6, 2, 16, 8, True, None),
    (300, 300, 4, 4, 64, 64, True, None),  # several blocks, panels deeper than the L1 cache
    (101, 101, 6, 2, 16, 8, True, documents),  # sizes that nothing divides
    (230, 230, 2, 1, 20, 12, False, window),
    (70, 45, 6, 6, 16, 8, False, None),  # cross attention
    (45, 70, 4, 4, 16, 16, False, None),
    (1, 33, 2, 2, 7, 5, False, None),
    (50, 50, 4, 2, 16, 16, False, None),
    (30, 45, 2, 2, 16, 16, True, None),
    (150, 130, 2, 2, 16, 16, True, None),  # the last queries see all keys
    (40, 40, 2, 1, 260, 264, True, None),
    (120, 120, 6, 3, 16, 16, True, window),
    (197, 197, 3, 3, 64, 64, False, None),
]


def operands(case: tuple[int, int, int, int, int, int, bool, Masks | None], dtype: torch.dtype) -> list[Tensor]:
    s, t, h, k, e, f, *_ = case
    made = torch.Generator().manual_seed(s * 7 + t)
    shapes = ((2, s, h, e), (2, t, k, e), (2, t, k, f), (2, s, h, f))
    return [torch.randn(shape, generator=made, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("by", "dtype"), EACH)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}x{c[1]}-{c[2]}of{c[3]}")
def test_attention_is_the_formula(
    by: Pair, dtype: torch.dtype, case: tuple[int, int, int, int, int, int, bool, Masks | None]
) -> None:
    *qkv, dy = operands(case, dtype)
    causal, mask = case[6], case[7](2, case[0]) if case[7] else None
    exact = [t.double().clone().requires_grad_() for t in qkv]
    wanted = reference(*exact, mask, causal, 0.3)  # type: ignore[arg-type]
    wanted_grads = torch.autograd.grad(wanted, exact, dy.double())
    found, sums = by[0](*qkv, mask, causal, 0.3)
    grads = by[1](*qkv, mask, found, sums, dy, causal, 0.3)
    for a, x in zip((found, *grads), (wanted, *wanted_grads), strict=True):
        assert a.dtype == dtype
        assert a.is_contiguous()
        assert float((a.double() - x.detach()).abs().max() / x.detach().abs().max()) < LIMITS[dtype]


def test_the_op_has_a_gradient() -> None:
    q, k, v, dy = (x.requires_grad_() for x in operands(CASES[0], torch.float64))
    assert torch.autograd.gradcheck(lambda *x: attention(*x, None, True, 0.3)[0], (q[:, :9], k[:, :9], v[:, :9]))
    wanted = torch.autograd.grad(reference(q, k, v, None, True, 0.3), (q, k, v), dy)
    found = torch.autograd.grad(attention(q, k, v, None, True, 0.3)[0], (q, k, v), dy)
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("case", [CASES[2], CASES[5]], ids=["masked", "plain"])
@pytest.mark.parametrize("pair", BOTH)
def test_a_backward_takes_what_either_forward_gave(
    pair: Pair, case: tuple[int, int, int, int, int, int, bool, Masks | None]
) -> None:
    *qkv, dy = operands(case, torch.float32)
    causal, mask = case[6], case[7](2, case[0]) if case[7] else None
    here = attention(*qkv, mask, causal, 0.3)
    there = pair[0](*qkv, mask, causal, 0.3)
    assert torch.allclose(here[1][:, :, :-1], there[1][:, :, :-1], atol=1e-5)  # the last masked one has no meaning
    grads = (pair[1](*qkv, mask, *gave, dy, causal, 0.3) for gave in (here, there))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_an_op_that_is_not_below_autograd_may_ask_for_gradients_inside() -> None:
    """As the backward does on GPUs, where the forward runs again."""

    @own_op("test_slope", lambda x: x.new_empty(x.shape), below_autograd=False)
    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return torch.autograd.grad(y.square().sum(), y)[0]

    with torch.no_grad():
        assert slope(torch.tensor([3.0])) == 6.0
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert [has(f"specc::{n}", "Autograd") for n in ("test_slope", "attention_backward", "attention")] == [0, 0, 1]


@pytest.mark.parametrize("by", BOTH)
@pytest.mark.parametrize("causal", [False, True])
def test_the_numbers_of_a_row_may_lie_apart(by: Pair, causal: bool) -> None:
    *dense, dy = operands(CASES[7], torch.float32)
    apart = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in dense]
    assert all(x.stride(-1) != 1 for x in apart)
    y, sums = by[0](*dense, None, causal, 0.3)
    wanted = (y, *by[1](*dense, None, y, sums, dy, causal, 0.3))
    y, sums = by[0](*apart, None, causal, 0.3)
    for a, b in zip((y, *by[1](*apart, None, y, sums, dy, causal, 0.3)), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("bad", ["mask", "keys", "dtype"])
def test_operands_that_do_not_fit_are_refused(bad: str) -> None:
    q, k, v, _ = operands(CASES[0], torch.float32)
    mask = documents(2, 96)[:, :, :95] if bad == "mask" else None
    with pytest.raises(ValueError, match="do not fit"):
        attention(q, k[:1] if bad == "keys" else k, v.double() if bad == "dtype" else v, mask, True, 0.3)


@available
def test_operands_may_be_views_and_threads_change_nothing() -> None:
    made = torch.Generator().manual_seed(1)
    qkv = torch.randn(3, 130, 3, 4, 32, generator=made)
    views = qkv.unbind(2)
    dense = [x.contiguous() for x in views]
    y, sums = own.own_attention(*views, None, True, 0.2)
    grads = own.own_attention_backward(
        *views, None, y, sums, torch.ones_like(y).transpose(1, 2).transpose(1, 2), True, 0.2
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        y_1, sums_1 = own.own_attention(*dense, None, True, 0.2)
        grads_1 = own.own_attention_backward(*dense, None, y_1, sums_1, torch.ones_like(y), True, 0.2)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip((y, sums, *grads), (y_1, sums_1, *grads_1), strict=True))


@available
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    q, k, v, dy = operands(CASES[0], torch.float32)
    q[0, 0, 1], q[0, 3, 1, 2] = -math.inf * k[0, 0, 0].sign(), bad  # the first one's only score is -inf
    y, sums = own.own_attention(q, k, v, None, True, 0.3)
    assert y[0, 3, 1].isnan().all()
    assert y[0, 0, 1].isnan().all()
    assert y[0, 4:].isfinite().all()
    dq, _, _ = own.own_attention_backward(q, k, v, None, y, sums, dy, True, 0.3)
    assert dq[0, 3, 1].isnan().all()


@available
def test_scores_of_any_size_have_finite_weights() -> None:
    q, k, v, dy = operands(CASES[4], torch.float32)
    y, sums = own.own_attention(q * 1e3, k, v, None, False, 1.0)
    grads = own.own_attention_backward(q * 1e3, k, v, None, y, sums, dy, False, 1.0)
    assert all(x.isfinite().all() for x in (y, sums, *grads))


@pytest.mark.parametrize(("mask", "dtype"), [
    ("", torch.float32), ("causal", torch.float32), ("document", torch.bfloat16),
])  # fmt: skip
def test_a_graph_has_one_node_of_it(mask: str, dtype: torch.dtype) -> None:
    attrs = {"attributes": {"doc": "int[B S]"}} if mask == "document" else {}
    made = model(
        dims={"S": 96, "H": 2, "E": 16, "F": 8}, inputs={"q": "float[B S H E]", "v": "float[B S H F]"}, **attrs,
        steps=[{"attend": {"mask": mask} if mask else {}, "from": ["q", "q", "v"], "as": "y"}], outputs={"y": "y"},
    )  # fmt: skip
    graphs, _ = lower(made, {"B": 2}, dtype)
    names = [str(n.target) for g in graphs.values() for n in g.fwd.graph.nodes]
    assert names.count("specc.attention.default") == 1
    assert "aten.bmm.default" not in names


def test_blocks_round_about_as_much_as_the_kernel_of_torch_in_bf16() -> None:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 256, 4, 64, generator=made).mul(2.0).bfloat16() for _ in range(3))
    exact = reference(q.double(), k.double(), v.double(), None, True, 0.125)
    theirs = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    limit = 2 * float((theirs.transpose(1, 2) - exact).square().mean())
    assert float((attention(q, k, v, None, True, 0.125)[0] - exact).square().mean()) < limit


def test_scores_of_a_block_are_bounded() -> None:
    q, k = torch.empty(64, 512, 8, 16, device="meta"), torch.empty(64, 512, 2, 16, device="meta")
    cut = list(attend._blocks(q, k, causal=True))
    assert all(8 * (x.stop - x.start) * (y.stop - y.start) * n <= attend.MAX_SCORES for x, y, n in cut)
    assert sum((x.stop - x.start) * (y.stop - y.start) for x, y, _ in cut) == 64 * 512


@available
def test_a_library_is_built_once_and_where_it_cannot_be_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = of_itself("causal", torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    clear = (own.library.cache_clear, own._is_built.cache_clear)
    for each in clear:
        each()
    try:
        with pytest.warns(UserWarning, match="not built for this processor"):
            assert _targets(own.with_own_attention(graph)) == {attention}
        monkeypatch.delenv("CXX")
        for each in clear:
            each()
        assert _targets(own.with_own_attention(graph)) == {own.own_attention}
        assert len(list((tmp_path / "specc").iterdir())) == 1
        own.library.cache_clear()
        monkeypatch.setattr(subprocess, "run", None)  # what is kept is taken
        q = torch.randn(2, 70, 2, 16)
        y = callable_of(graph, compiled=False)([q])[0]
        assert torch.allclose(y, attention(q, q, q, None, True, 0.25)[0], atol=1e-6)
    finally:
        monkeypatch.undo()
        for each in clear:
            each()


def _targets(gm: torch.fx.GraphModule) -> set[object]:
    return {n.target for n in gm.graph.nodes if "attention" in str(n.target)}


@pytest.mark.parametrize(("mask", "dtype", "threads", "is_own"), [
    ("", torch.float32, 1, True), ("causal", torch.float32, 4, True), ("", torch.bfloat16, 1, True),
    ("causal", torch.float64, 1, False), ("causal", torch.float32, 5, False),
])  # fmt: skip
@available
def test_it_is_taken_for_its_dtypes_and_if_no_thread_is_idle(
    mask: str, dtype: torch.dtype, threads: int, is_own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    graph = of_itself(mask, dtype)
    assert _targets(own.with_own_attention(graph)) == {own.own_attention if is_own else attention}


def of_itself(mask: str, dtype: torch.dtype) -> torch.fx.GraphModule:
    """The forward of an attention whose queries are its keys and its values, of four heads in all."""
    made = model(
        dims={"S": 70, "H": 2, "E": 16}, inputs={"q": "float[B S H E]"},
        steps=[{"attend": {"mask": mask} if mask else {}, "from": ["q", "q", "q"], "as": "y"}], outputs={"y": "y"},
    )  # fmt: skip
    return next(iter(lower(made, {"B": 2}, dtype)[0].values())).fwd
