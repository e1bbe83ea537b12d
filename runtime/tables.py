"""Tables, taken out of a graph before Inductor makes C++ of it: sines and cosines of positions are fused into what
turns each head by them there, and computed for every head. As tables they are computed once."""

from __future__ import annotations

import math

import torch
from torch import fx

from specc.compiler.fused import is_alone, is_row_wise, is_sent, users
from specc.compiler.graphs import node_type
from specc.compiler.partition import ancestors, cut_out

aten = torch.ops.aten
SLOW = (aten.cos.default, aten.sin.default)


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
