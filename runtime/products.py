"""Matrix products of a graph by what is fast on this processor: fp32 through oneDNN, bf16 in fp32 where it has no bf16.

MKL, which torch sends fp32 products to, keeps to narrow vectors on processors of other makers. On an AMD EPYC with
AVX-512, two threads and 4096 x 512 x 1280, oneDNN does 455 GFLOP/s and MKL 192; where AVX2 is the widest, MKL loses
nothing, and oneDNN a quarter on transposed operands, which it copies. Without bf16 instructions, torch's own
bf16 products are loops: 1 GFLOP/s a thread on an EPYC with AVX2, where fp32 does 78."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from specc.compiler.lower.own import own_op

aten = torch.ops.aten
LARGE = 1 << 24  # multiply-adds from which a call of oneDNN surely costs less than it saves
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default)


@own_op("mm", lambda x, y: x.new_empty(x.shape[0], y.shape[1]), "cpu")
def mm(x: Tensor, y: Tensor) -> Tensor:
    """x [M K] times y [K N], both fp32."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, y.t(), None, "none", [], "")
    return out


@own_op("addmm", lambda other, x, y: x.new_empty(x.shape[0], y.shape[1]), "cpu")
def addmm(other: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x [M K] times y [K N] plus what broadcasts to it, all fp32."""
    out: Tensor = mm(x, y)
    return out.add_(other)


FAST = {aten.mm.default: torch.ops.specc.mm.default, aten.addmm.default: torch.ops.specc.addmm.default}


def available() -> bool:
    return bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_faster() -> bool:
    """Whether oneDNN has vectors here that MKL may leave unused."""
    return available() and torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices itself."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(ask()) if ask else True


def product(x: Tensor, y: Tensor) -> Tensor:
    """x [M K] times y [K N] as a graph of large products does it here."""
    if x.dtype == torch.bfloat16 and not has_bf16():
        return product(x.float(), y.float()).bfloat16()
    return mm(x, y) if x.dtype == torch.float32 and is_faster() else torch.mm(x, y)


def with_fast_products(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with its products replaced; the same graph if torch's own are as good."""
    if not has_bf16():
        widen(gm)
    if is_faster():
        for node in [n for n in gm.graph.nodes if n.target in FAST and not n.kwargs]:
            dtype, shape, _ = node.meta["type"]
            inner = node.args[-1].meta["type"][1][0]
            if dtype == "float32" and math.prod((*shape, inner)) >= LARGE:
                node.target = FAST[node.target]
    gm.recompile()
    return gm


def widen(gm: fx.GraphModule) -> None:
    """bf16 products in fp32: mm(x, y)   becomes   bf16(mm(fp32(x), fp32(y))). It rounds once, as bf16 units do.

    An operand of several products is widened once: Inductor makes as many copies as there are casts."""
    wide: dict[fx.Node, fx.Node] = {}
    for node in [n for n in gm.graph.nodes if n.target in PRODUCTS and n.meta["type"][0] == "bfloat16"]:
        uses = list(node.users)
        for operand in dict.fromkeys(node.all_input_nodes):
            if operand not in wide:
                with gm.graph.inserting_before(node):
                    wide[operand] = _cast(gm, operand, torch.float32)
            node.replace_input_with(operand, wide[operand])
        node.meta["type"] = ("float32", *node.meta["type"][1:])
        with gm.graph.inserting_after(node):
            back = _cast(gm, node, torch.bfloat16)
        for use in uses:
            use.replace_input_with(node, back)


def _cast(gm: fx.GraphModule, x: fx.Node, dtype: torch.dtype) -> fx.Node:
    node = gm.graph.call_function(aten._to_copy.default, (x,), {"dtype": dtype})
    node.meta["type"] = (str(dtype).removeprefix("torch."), *x.meta["type"][1:])
    return node
