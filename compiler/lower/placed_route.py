"""Experts on the ranks of an axis: tokens' copies go to the ranks of their experts, and their results come back.

No copy is dropped: a rank has room for all copies of all ranks of the axis, and computes those that came."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.lower import shape
from specc.compiler.lower.collectives import all_gather, group_name, unflat
from specc.compiler.lower.exchange import exchange
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.permute import copied, permuted
from specc.compiler.lower.placed_ops import spread
from specc.compiler.placement.types import Axis


@dataclass(frozen=True)
class Route:
    """How rows went: sorted for sending by `order`, counts by rank, and sorted again by `sorted` where they arrived."""

    axis: Axis
    order: Tensor
    send: Tensor
    receive: Tensor
    sorted: Tensor


def dispatch(e: Local, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = spread(e)
    axes = s.using("experts")
    if not axes:
        return shape.dispatch(e, x, chosen)
    assert len(axes) == 1, "experts are spread along one axis"
    axis, coordinate = s.axis(axes[0])
    k, n_own = chosen.shape[-1], e.shape(2)[0]
    tokens = x.reshape(math.prod(chosen.shape[:-1]), *x.shape[chosen.ndim - 1 :])
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = (flat[:, None] == torch.arange(axis.size * n_own, device=flat.device)).sum(0)
    every = unflat(all_gather(counts[None], 0, axis), 1, axis.size)  # [from, to, expert of the rank]
    table = every.index_select(1, coordinate).squeeze(1)
    send, receive = counts.reshape(axis.size, n_own).sum(1), table.sum(1)
    total = axis.size * flat.shape[0]
    came = exchange(copied(tokens, order, torch.argsort(order), k), send, receive, total, group_name(axis))
    source = torch.searchsorted(table.reshape(-1).cumsum(0), torch.arange(total, device=flat.device), right=True)
    expert = torch.where(source < axis.size * n_own, source % n_own, n_own)
    by_expert = torch.argsort(expert, stable=True)
    s.routes[e.eqn.outs[1]] = Route(axis, order, send, receive, by_expert)
    return permuted(came, by_expert, torch.argsort(by_expert)), order, table.sum(0).cumsum(0)


def row_gates(e: Local, gates: Tensor, order: Tensor) -> Tensor:
    own = shape.row_gates(e, gates, order)
    route = route_of(e)
    if route is None:
        return own
    came = exchange(own, route.send, route.receive, route.sorted.shape[0], group_name(route.axis))
    return permuted(came, route.sorted, torch.argsort(route.sorted))


def combine(e: Local, rows: Tensor, order: Tensor, chosen: Tensor) -> Tensor:
    route = route_of(e)
    if route is None:
        return shape.combine(e, rows, order, chosen)
    back = permuted(rows, torch.argsort(route.sorted), route.sorted)
    own = exchange(back, route.receive, route.send, route.order.shape[0], group_name(route.axis))
    return shape.combine(e, own, route.order, chosen)


def route_of(e: Local) -> Route | None:
    """How the rows of an order went, if they went to other ranks."""
    s = spread(e)
    if not s.using("experts"):
        return None
    route = s.routes[e.eqn.ins[1] or ""]
    assert isinstance(route, Route)
    return route


IMPLS: dict[str, Impl] = {"dispatch": dispatch, "row_gates": row_gates, "combine": combine}
