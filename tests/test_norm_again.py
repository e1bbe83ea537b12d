"""What a backward reads of a layer norm's output is made anew from its input; forwards keep the norm itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from specc.compiler.partition import build_graphs

NORM = torch.ops.aten.native_layer_norm.default


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_the_output_of_a_norm_is_not_kept(affine: bool, dtype: torch.dtype) -> None:
    def body(ins: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        y = F.layer_norm(ins[0], (8,), *params[1:], eps=1e-5)
        return [(y @ params[0]).exp()]

    made = torch.Generator().manual_seed(0)
    shapes = [(4, 8), (8, 8), *[(8,)] * 2 * affine]
    drawn = [torch.randn(s, generator=made).to(dtype) for s in shapes]
    with FakeTensorMode() as mode:
        x, *params = [torch.empty(s, dtype=dtype) for s in shapes]
    g = build_graphs(body, [x], params, [True], [True] * len(params), mode)
    assert g.bwd is not None
    assert len(g.fwd.graph.find_nodes(op="call_function", target=NORM)) == 1
    assert not g.fwd.graph.find_nodes(op="call_function", target=torch.ops.aten.sub.Tensor)
    out, *saved = g.fwd(*drawn)
    own = {x.untyped_storage().data_ptr() for x in (*drawn, out)}
    kept = sum(x.numel() for x in saved if x.untyped_storage().data_ptr() not in own)
    assert kept <= 2 * 4  # a mean and a deviation for each row
    leaves = [x.clone().requires_grad_() for x in drawn]
    wanted = torch.autograd.grad(body(leaves[:1], leaves[1:])[0].sum(), leaves)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for found, want in zip(g.bwd(*saved, torch.ones_like(out)), wanted, strict=True):
        assert float((found - want).abs().max() / want.abs().max()) < tolerance
