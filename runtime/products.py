"""Large fp32 matrix products of a graph by oneDNN, where torch has it: torch itself sends them to MKL.

MKL keeps to narrow vectors on processors of other makers. On an AMD EPYC with AVX-512, two threads and
4096 x 512 x 1280, oneDNN does 455 GFLOP/s and MKL 192; lower precisions go to oneDNN already."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

LARGE = 1 << 24  # multiply-adds from which a call of oneDNN surely costs less than it saves


@torch.library.custom_op("specc::mm", mutates_args=(), device_types="cpu")
def mm(x: Tensor, y: Tensor) -> Tensor:
    """x [M K] times y [K N], both fp32."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, y.t(), None, "none", [], "")
    return out


@mm.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[1])


def available() -> bool:
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def with_fast_products(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with its large fp32 products replaced; the same graph if this torch has no oneDNN."""
    if not available():
        return gm
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
        dtype, (m, n), _ = node.meta["type"]
        inner = node.args[0].meta["type"][1][1]
        if dtype == "float32" and math.prod((m, n, inner)) >= LARGE:
            node.target = torch.ops.specc.mm.default
    gm.recompile()
    return gm
