"""What autograd writes in place becomes functional in graphs, with the gradients that it had."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.partition import build_graphs
from specc.compiler.passes.functional import functional
from specc.spec.errors import SpecError


@pytest.mark.parametrize(
    "formula",
    [
        lambda x: torch.maximum(x, x * 0.1),
        lambda x: torch.minimum(x, 0.1 * x).amax(-1, keepdim=True) + x,
        lambda x: x / x.std(-1, keepdim=True),
        lambda x: x / x.norm(dim=-1, keepdim=True),
        lambda x: F.normalize(x, dim=-1),
    ],
)
def test_gradients_that_autograd_makes_in_place(formula: Callable[[Tensor], Tensor]) -> None:
    def body(ins: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        return [formula(ins[0] @ params[0])]

    made = torch.Generator().manual_seed(0)
    drawn = [torch.randn(s, generator=made, dtype=torch.float64) for s in ((3, 4), (4, 5))]
    with FakeTensorMode() as mode:
        x, w = (torch.empty(t.shape, dtype=t.dtype) for t in drawn)
    g = build_graphs(body, [x], [w], [True], [True], mode)
    assert g.bwd is not None
    out, *saved = g.fwd(*drawn)
    d_out = torch.randn(out.shape, generator=made, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in drawn]
    want = body(leaves[:1], leaves[1:])[0]
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(list(g.bwd(*saved, d_out)), list(torch.autograd.grad(want, leaves, d_out)))


def test_values_behind_a_write_read_what_was_written() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 2
        z = y + 1
        y.mul_(3)
        return y + z

    with FakeTensorMode() as mode:
        gm = functional(make_fx(f)(torch.empty(2)))
    assert mode is not None
    assert not any(n.target is torch.ops.aten.mul_.Tensor for n in gm.graph.nodes)
    assert gm(torch.tensor([1.0, 2.0])).tolist() == [9.0, 17.0]


def test_a_write_keeps_the_type_of_what_it_writes_to() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 2
        return y.add_(torch.ones(2, dtype=torch.float64)).mul_(3)

    with FakeTensorMode():
        gm = functional(make_fx(f)(torch.empty(2, dtype=torch.bfloat16)))
    out = gm(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [9.0, 15.0]


def test_writes_through_a_view_behind_another_write_are_refused() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 2
        y.mul_(3)
        y[0].add_(1)
        return y + 1

    with FakeTensorMode():
        gm = make_fx(f)(torch.empty(2, 2))
    with pytest.raises(SpecError, match="S402"):
        functional(gm)


def test_a_write_that_a_view_sees_is_refused() -> None:
    def body(ins: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        y = ins[0] * params[0]
        first = y.detach()[0]
        y.detach().mul_(2)
        return [y + first]

    with FakeTensorMode() as mode:
        x, w = torch.empty(2, 3), torch.empty(3)
    with pytest.raises(SpecError, match="S402"):
        build_graphs(body, [x], [w], [True], [True], mode)
