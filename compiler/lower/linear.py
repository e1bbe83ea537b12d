"""Implementations: products with weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.lower.grouped import grouped_mm
from specc.compiler.lower.local import Impl, Local
from specc.compiler.rules import parse_rule


def linear(e: Local, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    n_in = (x.ndim - len(e.out.dims) + weight.ndim) // 2
    width = math.prod(weight.shape[:n_in])
    rows, matrix = x.reshape(-1, width), weight.reshape(width, -1)
    y = rows @ matrix if bias is None else torch.addmm(bias.reshape(-1), rows, matrix)
    return y.reshape(e.shape())


def embedding(e: Local, index: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(index, weight.reshape(weight.shape[0], -1)).reshape(e.shape())


def einsum(e: Local, *xs: Tensor) -> Tensor:
    rule = parse_rule(e.attr("rule"))
    letters: dict[str, str] = {}

    def short(tokens: tuple[str, ...]) -> str:
        return "".join(letters.setdefault(t, chr(ord("a") + len(letters))) for t in tokens)

    left = ",".join(short(tuple(t.letter for t in p)) for p in rule.ins)
    right = short(tuple(t.letter for t in rule.outs[0]))
    return torch.einsum(f"{left}->{right}", *xs)


def conv(e: Local, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pad, stride = e.attr("pad"), e.attr("stride")
    spatial = x.ndim - 2
    if not isinstance(pad, int):
        x = F.pad(x, tuple(pad) * spatial)
        pad = 0
    op = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    return op(x, weight, bias, stride=stride, padding=pad)


def grouped_linear(e: Local, rows: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    matrix = weight.reshape(weight.shape[0], weight.shape[1], -1)
    y: Tensor = grouped_mm(rows, matrix, offsets)
    return y.reshape(e.shape())


def routed_linear(e: Local, x: Tensor, index: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Tokens sorted by group, one product a group, and back in order."""
    n_in = (x.ndim - len(e.out.dims) + weight.ndim - 1) // 2
    groups = weight.shape[0]
    width = math.prod(weight.shape[1 : 1 + n_in])
    rows = x.reshape(-1, width)
    flat = index.expand(x.shape[: x.ndim - n_in]).reshape(-1)
    order = torch.argsort(flat, stable=True)
    offsets = (flat[:, None] == torch.arange(groups, device=flat.device)).sum(0).cumsum(0)
    y: Tensor = grouped_mm(rows[order], weight.reshape(groups, width, -1), offsets)
    y = y[torch.argsort(order)]
    if bias is not None:
        y = y + bias.reshape(groups, -1)[flat]
    return y.reshape(e.shape())


IMPLS: dict[str, Impl] = {
    "linear": linear, "embedding": embedding, "einsum": einsum, "conv": conv, "grouped_linear": grouped_linear,
    "routed_linear": routed_linear,
}  # fmt: skip
