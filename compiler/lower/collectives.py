"""Moves between layouts as functional collectives on logical groups, with the move between gradients as backward.

A rank's place along an axis is an int64 tensor of one number, and a group has the name of its axis: a graph of these
operators serves every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specc.compiler.placement.reshard import Move, moves
from specc.compiler.placement.types import Axis, Layout, Mesh, P, Place, R

c10d = torch.ops._c10d_functional
WAIT = c10d.wait_tensor.default


def group_name(axis: Axis) -> str:
    """The logical name under which every rank registers its own group along the axis."""
    return f"specc_{axis.name}"


def reshard(x: Tensor, src: Layout, dst: Layout, mesh: Mesh, coordinates: Sequence[Tensor]) -> Tensor:
    """A local value in another layout; differentiable."""
    path = moves(src, dst)
    assert path is not None, f"no way from {src} to {dst}"
    for m in path:
        x = step(x, m, mesh.axes[m.axis], coordinates[m.axis])
    return x


def reshard_gradient(g: Tensor, src: Layout, dst: Layout, mesh: Mesh, coordinates: Sequence[Tensor]) -> Tensor:
    """The transpose: a gradient of what `reshard` gave becomes that of what it took."""
    path = moves(src, dst)
    assert path is not None, f"no way from {src} to {dst}"
    for m in reversed(path):
        g = move(g, m.dst.gradient, m.src.gradient, mesh.axes[m.axis], coordinates[m.axis])
    return g


def step(x: Tensor, m: Move, axis: Axis, coordinate: Tensor) -> Tensor:
    """One move; differentiable."""
    apply: Callable[..., Tensor] = _Step.apply
    return apply(x, coordinate, m, axis)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coordinate: Tensor, m: Move, axis: Axis) -> Tensor:
        ctx.move, ctx.axis = m, axis
        ctx.save_for_backward(coordinate)
        return move(x, m.src, m.dst, axis, coordinate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        m: Move = ctx.move
        (coordinate,) = ctx.saved_tensors
        return move(grads[0], m.dst.gradient, m.src.gradient, ctx.axis, coordinate), None, None, None


def move(x: Tensor, src: Place, dst: Place, axis: Axis, coordinate: Tensor) -> Tensor:
    """A value of one type along an axis as another; S -> P and R -> P are moves of gradients alone."""
    kinds = src.kind + dst.kind
    match kinds:
        case "RR" | "VV" | "PP" | "RV" | "VR":
            return alias(x)
        case "SR" | "SV":
            return all_gather(x, src.dim, axis)
        case "RS" | "VS":
            return cut(x, dst.dim, axis, coordinate)
        case "PR" | "PV":
            return all_reduce(x, axis)
        case "PS":
            return reduce_scatter(x, dst.dim, axis)
        case "SS":
            return all_to_all(x, src.dim, dst.dim, axis)
        case "SP":
            return padded(x, src.dim, axis, coordinate)
    assert kinds in ("RP", "VP"), f"no move from {src} to {dst}"
    return on_first(x, coordinate)


def all_gather(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """The ranks' parts, joined along a dim."""
    sent = x.view(torch.uint8) if x.dtype == torch.bool else x
    y: Tensor = c10d.wait_tensor(c10d.all_gather_into_tensor(sent.contiguous(), axis.size, group_name(axis)))
    y = y.view(torch.bool) if x.dtype == torch.bool else y
    return y if dim == 0 else unflat(y, 0, axis.size).movedim(0, dim).flatten(dim, dim + 1).contiguous()


def reduce_scatter(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """This rank's part along a dim of the sum."""
    if dim != 0:
        x = unflat(x, dim, axis.size).movedim(dim, 0).flatten(0, 1)
    y: Tensor = c10d.wait_tensor(c10d.reduce_scatter_tensor(x.contiguous(), "sum", axis.size, group_name(axis)))
    return y


def all_reduce(x: Tensor, axis: Axis) -> Tensor:
    y: Tensor = c10d.wait_tensor(c10d.all_reduce(x.contiguous(), "sum", group_name(axis)))
    return y


def all_to_all(x: Tensor, src: int, dst: int, axis: Axis) -> Tensor:
    """Split on dim `src` -> split on dim `dst`."""
    n = axis.size
    parts = unflat(x, dst, n).movedim(dst, 0).contiguous()
    rows = parts.shape[1]
    sent = parts.flatten(0, 1)
    y: Tensor = c10d.wait_tensor(c10d.all_to_all_single(sent, [rows] * n, [rows] * n, group_name(axis)))
    return unflat(y, 0, n).movedim(0, src).flatten(src, src + 1).contiguous()


def cut(x: Tensor, dim: int, axis: Axis, coordinate: Tensor) -> Tensor:
    """This rank's part along a dim."""
    return unflat(x, dim, axis.size).index_select(dim, coordinate).squeeze(dim)


def padded(x: Tensor, dim: int, axis: Axis, coordinate: Tensor) -> Tensor:
    """A part at its place in a whole of zeros."""
    whole = x.new_zeros(*x.shape[:dim], axis.size, *x.shape[dim:])
    return whole.index_copy(dim, coordinate, x.unsqueeze(dim)).flatten(dim, dim + 1)


def on_first(x: Tensor, coordinate: Tensor) -> Tensor:
    """The value on the axis's first rank, zeros on the others: a sum that is the value."""
    return torch.where((coordinate == 0).reshape(()), x, x.new_zeros(()))


def as_sum(x: Tensor, place: Place, axis: Axis, coordinate: Tensor) -> Tensor:
    """A replicated value as a partial sum (a bias beside a product that is one); differentiable."""
    return step(x, Move(0, place if place.kind == "V" else R, P), axis, coordinate)


def unflat(x: Tensor, dim: int, n: int) -> Tensor:
    """A dim as n parts of it."""
    return x.reshape(*x.shape[:dim], n, x.shape[dim] // n, *x.shape[dim + 1 :])


def alias(x: Tensor) -> Tensor:
    """The same value as another tensor, which autograd wants of a function; graphs drop it."""
    y: Tensor = torch.ops.aten.alias.default(x)
    return y
