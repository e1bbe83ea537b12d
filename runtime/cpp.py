"""What Inductor's C++ is slow at, taken out of a graph before it is compiled for CPUs.

A sum over rows walks down columns there, and reads each line of memory several times: an op of its own is 10 times as
fast (4096 x 512, two threads). Sines and cosines of positions are fused into what turns each head by them, and computed
for every head: as tables they are computed once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from specc.compiler.fused import is_alone, is_row_wise, is_sent, users
from specc.compiler.graphs import node_type
from specc.compiler.partition import ancestors, cut_out

aten = torch.ops.aten
ROWS = 64  # from which their sum is worth an op
SLOW = (aten.cos.default, aten.sin.default)


@torch.library.custom_op("specc::sum_rows", mutates_args=(), device_types="cpu")
def sum_rows(x: Tensor) -> Tensor:
    """x [G R D] -> [G D]"""
    return x.sum(1)


@sum_rows.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2])


def with_row_sums(gm: fx.GraphModule) -> fx.GraphModule:
    """sum(x [... D], over all dims but the last, or those before it)   becomes   sum_rows(x [G R D])."""
    for node in gm.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        x, dims = node.args[0], node.args[1]
        dtype, shape = node_type(x)[:2]
        if not dims or len(shape) < 2:
            continue
        over = sorted(d % len(shape) for d in dims)
        groups, rows, inner = math.prod(shape[: over[0]]), math.prod(shape[over[0] : -1]), shape[-1]
        if over != list(range(over[0], len(shape) - 1)) or rows < ROWS or inner < 2 or node_type(node)[0] != dtype:
            continue
        with gm.graph.inserting_before(node):
            flat = gm.graph.call_function(aten.reshape.default, (x, [groups, rows, inner]))
            flat.meta["type"] = (dtype, [groups, rows, inner], [rows * inner, inner, 1])
            total = gm.graph.call_function(torch.ops.specc.sum_rows.default, (flat,))
            total.meta["type"] = (dtype, [groups, inner], [inner, 1])
            back = gm.graph.call_function(aten.reshape.default, (total, node_type(node)[1]))
            back.meta["type"] = node.meta["type"]
        node.replace_all_uses_with(back)
        gm.graph.erase_node(node)
    gm.recompile()
    return gm


def without_tables(gm: fx.GraphModule) -> tuple[fx.GraphModule | None, fx.GraphModule]:
    """tables(*xs) -> ts and rest(*xs, *ts) -> ys, if there are tables that something larger is made of, row by row.

    What a table is made of is row-wise too: no product runs twice, and nothing is sent twice."""
    tables = [n for n in gm.graph.nodes if n.target in SLOW and _is_table(n)]
    if not tables:
        return None, gm
    placeholders = gm.graph.find_nodes(op="placeholder")
    outs = list(gm.graph.output_node().args[0])  # type: ignore[arg-type]
    return cut_out(gm, placeholders, tables), cut_out(gm, [*placeholders, *tables], outs)


def _is_table(node: fx.Node) -> bool:
    larger = any(_size(u) > _size(node) and is_row_wise(u) for u in users(node, through=(aten._to_copy.default,)))
    return larger and not any(is_alone(n) or is_sent(n) for n in ancestors([node], set()))


def _size(node: fx.Node) -> int:
    kind = node_type(node)
    return math.prod(kind[1]) if kind and isinstance(kind[0], str) else 0
