"""The halves of a backward: the weight half takes what its products read, and gives the same gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from specc.compiler.partition import build_graphs

TOKENS, D, HIDDEN = 6, 4, 10
SHAPES = [(TOKENS, D), (D,), (D, HIDDEN), (D, HIDDEN), (HIDDEN, D)]


def gated(ins: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """A layer's second part: its norm's weight is in fp32 sums, its product in the middle is of two values."""
    (x,), (scale, gate, up, down) = ins, params
    y = (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * scale
    return [x + (F.silu(y @ gate) * (y @ up)) @ down]


def test_a_weight_half_takes_operands_of_products_and_their_gradients() -> None:
    dtype = torch.bfloat16
    with FakeTensorMode() as mode:
        x, *params = [torch.empty(s, dtype=dtype) for s in SHAPES]
    g = build_graphs(gated, [x], params, [True], [True] * len(params), mode)
    assert g.bwd_weight is not None
    live = [n.meta["val"] for n in g.bwd_weight.graph.find_nodes(op="placeholder")]
    # y, its product and the gradients of the three products' results; the norm's weight has its gradient by then
    assert sum(x.nbytes for x in live) == 2 * (TOKENS * (D + HIDDEN + 2 * HIDDEN + D) + D)


def test_both_halves_give_what_the_whole_backward_gives() -> None:
    made = torch.Generator().manual_seed(0)
    drawn = [torch.randn(s, generator=made, dtype=torch.float64) for s in SHAPES]
    with FakeTensorMode() as mode:
        x, *params = [torch.empty(s, dtype=torch.float64) for s in SHAPES]
    g = build_graphs(gated, [x], params, [True], [True] * len(params), mode)
    assert g.bwd is not None
    assert g.bwd_input is not None
    assert g.bwd_weight is not None
    out, *saved = g.fwd(*drawn)
    d_out = torch.randn(out.shape, generator=made, dtype=torch.float64)
    d_x, *d_params = g.bwd(*saved, d_out)
    d_ins, *live = g.bwd_input(*saved, d_out)
    leaves = [x.clone().requires_grad_() for x in drawn]
    wanted = torch.autograd.grad(gated(leaves[:1], leaves[1:])[0], leaves, d_out)
    torch.testing.assert_close([d_ins, *g.bwd_weight(*live)], [d_x, *d_params])
    torch.testing.assert_close([d_x, *d_params], list(wanted), rtol=1e-6, atol=1e-6)
