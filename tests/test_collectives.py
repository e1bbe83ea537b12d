"""Moves between layouts on real processes: values and gradients are right for every legal pair of layouts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from specc.compiler.lower.collectives import reshard, reshard_gradient
from specc.compiler.placement.reshard import moves
from specc.compiler.placement.types import Axis, Layout, Mesh, P, R, S, V, gradient
from specc.runtime.groups import cut, join, whole
from tests.grid.processes import spawn

MESH = Mesh((Axis("a", 2), Axis("b", 2)))
TYPES = (R, V, P, S(0), S(1))
pytestmark = pytest.mark.dist


def local(x: Tensor, layout: Layout, rank: int) -> Tensor:
    """A rank's share: of a sum, a quarter on one rank and three on the other."""
    x = cut(x, layout, MESH, rank)
    for place, c in zip(layout, MESH.coordinates(rank), strict=True):
        if place == P:
            x = x * (0.25 if c == 0 else 0.75)
    return x


def try_all(rank: int, dtype: torch.dtype) -> tuple[int, list[str]]:
    coordinates = join(MESH, rank)
    draw = torch.Generator().manual_seed(0)
    value, slope = (torch.randn(4, 8, generator=draw).to(dtype) for _ in range(2))
    n, bad = 0, list[str]()
    close = {"atol": 1e-5} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.1}
    for src, dst in itertools.product(itertools.product(TYPES, repeat=2), repeat=2):
        if moves(src, dst) is None:
            continue
        x = local(value, src, rank).requires_grad_()
        y = reshard(x, src, dst, MESH, coordinates)
        g = local(slope, gradient(dst), rank)
        (d_x,) = torch.autograd.grad(y, x, g)
        fine = torch.allclose(whole(y.detach(), dst, MESH), value, **close)
        fine &= torch.allclose(whole(d_x, gradient(src), MESH), slope, **close)
        fine &= torch.equal(d_x, reshard_gradient(g, src, dst, MESH, coordinates))
        n += 1
        bad += [] if fine else [f"{src} -> {dst}"]
    return n, bad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_legal_move_has_the_right_value_and_gradient(dtype: torch.dtype) -> None:
    for n, bad in spawn(try_all, 4, dtype):
        assert (n, bad) == (441, [])
