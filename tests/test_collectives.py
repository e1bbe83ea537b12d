"""Moves between layouts on real processes: values and gradients are right for every legal pair of layouts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from specc.compiler.lower.collectives import WAIT, group_name, reshard, reshard_gradient
from specc.compiler.lower.exchange import exchange, shift
from specc.compiler.placement.reshard import moves
from specc.compiler.placement.types import Axis, Layout, Mesh, P, R, S, V, gradient
from specc.runtime.groups import cut, join, whole
from tests.grid.processes import spawn

LINE = Mesh((Axis("a", 2),))
MESH = Mesh((Axis("a", 2), Axis("b", 2)))
GATHER = torch.ops._c10d_functional.all_gather_into_tensor
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


def gather_much(rank: int, rounds: int) -> int:
    """Rounds in which six all-gathers are in flight at a time and all of them come right."""
    join(LINE, rank)
    shares = [torch.arange(2 * 16 * n).reshape(32, n).float() for n in range(8, 14)]
    fine = 0
    for _ in range(rounds):
        going = [GATHER(2.0 * x[rank * 16 : rank * 16 + 16], 2, group_name(LINE.axes[0])) for x in shares]
        fine += all(torch.equal(WAIT(y), 2.0 * x) for x, y in zip(shares, going, strict=True))
    return fine


def test_many_gathers_of_a_group_may_be_in_flight() -> None:
    assert spawn(gather_much, 2, 1000) == [1000, 1000]


def exchanged(rank: int) -> tuple[list[float], list[float], list[float]]:
    """Rank r sends r + 1 rows to rank 0 and one to rank 1, and gets their gradients back."""
    join(LINE, rank)
    to = torch.tensor([rank + 1, 1])
    came = torch.tensor([1, 2] if rank == 0 else [1, 1])
    rows = (10.0 * rank + torch.arange(4.0)).requires_grad_()
    y = exchange(rows[:, None], to, came, 5, "specc_a")
    (d,) = torch.autograd.grad(y.sum(1) @ torch.arange(1.0, 6.0), rows)
    passed = WAIT(shift(rows.detach(), 2, "specc_a"))
    return y[:, 0].tolist(), d.tolist(), passed.tolist()


def test_exchanges_of_uneven_counts_come_and_go() -> None:
    first, second = spawn(exchanged, 2)
    assert first[0] == [0.0, 10.0, 11.0, 0.0, 0.0]
    assert second[0] == [1.0, 12.0, 0.0, 0.0, 0.0]
    assert first[1] == [1.0, 1.0, 0.0, 0.0]  # weights 1.. by place where the rows arrived; the rest was not sent
    assert second[1] == [2.0, 3.0, 2.0, 0.0]
    assert (first[2], second[2]) == ([10.0, 11.0, 12.0, 13.0], [0.0, 1.0, 2.0, 3.0])


def test_fake_exchanges_have_the_shapes_of_real_ones() -> None:
    with FakeTensorMode():
        x, n = torch.empty(4, 3), torch.zeros(2, dtype=torch.int64)
        assert exchange(x, n, n, 9, "specc_a").shape == (9, 3)
        assert shift(x, 2, "specc_a").shape == (12,)
