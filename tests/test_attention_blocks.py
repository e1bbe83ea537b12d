"""Attention in blocks of queries against the plain formula in fp64: outputs and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from specc.compiler.build import lower
from specc.compiler.lower.attention_blocks import MAX_SCORES, ROWS, Blocks, attend_blocks, block_rows
from tests.text_models import model


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    s = torch.einsum("bkgse,bkte->bkgst", q, k) * scale
    if causal:
        s = s.masked_fill(~torch.ones(s.shape[-2:], dtype=torch.bool).tril(), -math.inf)
    if mask is not None:
        s = s.masked_fill(~mask[:, None, None], -math.inf)
    p = torch.softmax(s, -1).nan_to_num(0.0)  # a query that sees nothing
    return torch.einsum("bkgst,bktf->bkgsf", p, v)


def documents(batch: int, n: int) -> Tensor:
    """Packed documents, causal; the last query sees nothing."""
    doc = torch.arange(n).div(37, rounding_mode="floor").expand(batch, n)
    seen = (doc[:, :, None] == doc[:, None, :]) & torch.ones(n, n, dtype=torch.bool).tril()
    seen = seen.clone()
    seen[:, -1] = False
    return seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "keys", "rows", "causal", "masked"), [
    (96, 96, 32, True, False),
    (96, 96, 96, True, False),
    (101, 101, 32, True, True),  # the last block is short
    (101, 101, 32, True, False),
    (70, 45, 32, False, False),  # cross attention
    (64, 64, 24, False, True),
])  # fmt: skip
def test_blocks_agree_with_the_formula(
    dtype: torch.dtype, queries: int, keys: int, rows: int, causal: bool, masked: bool
) -> None:
    made = torch.Generator().manual_seed(queries * 7 + rows)
    b, k, g, e, f = 2, 2, 3, 16, 8
    q, key, value, up = (
        torch.randn(shape, generator=made, dtype=torch.float64).to(dtype)
        for shape in ((b, k, g, queries, e), (b, k, keys, e), (b, k, keys, f), (b, k, g, queries, f))
    )
    mask = documents(b, queries) if masked else None
    exact = [t.double().requires_grad_() for t in (q, key, value)]
    wanted = reference(exact[0], exact[1], exact[2], mask, causal, 0.3)
    wanted_grads = torch.autograd.grad(wanted, exact, up.double())
    ours = [t.clone().requires_grad_() for t in (q, key, value)]
    found = attend_blocks(ours[0], ours[1], ours[2], mask, Blocks(rows, 0.3, causal))
    grads = torch.autograd.grad(found, ours, up)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for a, x in zip((found, *grads), (wanted, *wanted_grads), strict=True):
        assert a.dtype == dtype
        assert float((a.detach().double() - x.detach()).abs().max() / x.detach().abs().max()) < limit


@pytest.mark.parametrize(("mask", "dtype", "values", "blocks"), [
    ("", torch.float32, 16, False), ("causal", torch.float32, 16, True), ("document", torch.float32, 16, True),
    ("", torch.bfloat16, 16, True), ("", torch.float32, 8, True),
])  # fmt: skip
def test_attention_that_skips_nothing_is_torchs_own(mask: str, dtype: torch.dtype, values: int, blocks: bool) -> None:
    attrs = {"attributes": {"doc": "int[B S]"}} if mask == "document" else {}
    attend = {"mask": mask} if mask else {}
    made = model(
        dims={"S": 96, "H": 2, "E": 16, "F": values}, inputs={"q": "float[B S H E]", "v": "float[B S H F]"}, **attrs,
        steps=[{"attend": attend, "from": ["q", "q", "v"], "as": "y"}], outputs={"y": "y"},
    )  # fmt: skip
    graphs, _ = lower(made, {"B": 2}, dtype)
    names = {str(n.target) for g in graphs.values() for n in g.fwd.graph.nodes}
    assert ("aten.bmm.default" in names) == blocks
    assert any("scaled_dot_product" in n for n in names) == (not blocks)


def test_blocks_round_about_as_much_as_the_kernel_of_torch_in_bf16() -> None:
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 256, 64, generator=made).mul(2.0).bfloat16() for _ in range(3))
    exact = reference(q.double()[:, :, None], k.double(), v.double(), None, True, 0.125)[:, :, 0]
    ours = attend_blocks(q[:, :, None], k, v, None, Blocks(64, 0.125, True))[:, :, 0]
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert float((ours - exact).square().mean()) < 2 * float((theirs - exact).square().mean())


def test_blocks_are_few_and_their_scores_are_bounded() -> None:
    assert block_rows(64, 512, 512) == ROWS
    assert block_rows(8, 4096, 4096) == 512
    assert block_rows(8, 100, 100) == 100
    rows = block_rows(64, 2048, 1024)
    assert rows is None or rows * 64 * 1024 <= MAX_SCORES
    assert block_rows(64, 8192, 8192) is None
