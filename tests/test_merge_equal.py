"""Equal nodes are one; what only looks equal stays two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.passes.merge_equal import merge_equal


@pytest.mark.parametrize(
    ("fn", "left"),
    [
        (lambda x: x.exp() + x.exp(), 2),
        (lambda x: (x.exp() * 2).sum() + (x.exp() * 2).sum(), 4),
        (lambda x: x * 1 + x * 1.0, 3),
        (lambda x: x * 0.0 + x * -0.0, 3),
        (lambda x: x + torch.rand_like(x) + torch.rand_like(x), 4),
        (lambda x: x.sum(0) + x.sum(1), 3),
    ],
)
def test_how_many_nodes_are_left(fn: Callable[[Tensor], Tensor], left: int) -> None:
    x = torch.randn(3, 3)
    gm = merge_equal(make_fx(fn)(x))
    assert len(gm.graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default)) == 0
    assert sum(n.op == "call_function" for n in gm.graph.nodes) == left
    if "rand" not in gm.code:
        torch.testing.assert_close(gm(x), fn(x), rtol=0, atol=0)
