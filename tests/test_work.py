"""Work and memory of graphs, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import scaled_dot_product_attention

from specc.compiler.work import Stretch, fresh_bytes, graph_work, stretches


def traced(m: int, k: int, n: int) -> fx.GraphModule:
    """relu(x y)' twice over: a product, a pointwise op, a view, a sum."""

    def f(x: Tensor, y: Tensor) -> list[Tensor]:
        z = torch.relu(x @ y)
        return [z.t(), z, z.sum(), x.t()]

    with FakeTensorMode():
        x, y = torch.empty(m, k), torch.empty(k, n)
    return make_fx(f)(x, y)


def test_products_count_flops_and_the_rest_bytes() -> None:
    work = graph_work(traced(8, 16, 4))
    assert work.flops == 2 * 8 * 16 * 4
    assert work.bytes == 4 * (2 * 8 * 4 + 8 * 4 + 1)  # relu reads and writes; the sum reads, and writes one number
    assert work.nodes == 3


def test_views_hold_no_memory_of_their_own() -> None:
    gm = traced(8, 16, 4)
    outs = list(gm.graph.output_node().args[0])  # type: ignore[arg-type]
    assert fresh_bytes(outs, gm.graph.find_nodes(op="placeholder")) == 4 * (8 * 4 + 1)


def test_values_are_alive_until_their_last_use() -> None:
    # The product, for which y comes; then its relu too. The sum comes when the product is gone; x is a result.
    z = 4 * 8 * 4
    assert stretches(traced(8, 16, 4)) == (Stretch(z, (1,)), Stretch(2 * z, (0,)), Stretch(0, ()))


def test_work_adds_up() -> None:
    work = graph_work(traced(8, 16, 4))
    assert (work + work) == work * 2


@pytest.mark.parametrize("causal", [False, True])
def test_attention_counts_two_products_and_five_backward(causal: bool) -> None:
    def f(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            xs = [x.detach().requires_grad_() for x in (q, k, v)]
            out = scaled_dot_product_attention(*xs, is_causal=causal)
            return [out.detach(), *torch.autograd.grad(out.sum(), xs)]

    with FakeTensorMode():
        q, k, v = torch.empty(2, 3, 16, 8), torch.empty(2, 3, 16, 8), torch.empty(2, 3, 16, 8)
    product = 2 * (2 * 3) * 16 * 16 * 8 / (2 if causal else 1)
    assert graph_work(make_fx(f)(q, k, v)).flops == 7 * product
