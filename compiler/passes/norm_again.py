"""Keeps no output of a layer norm beside its input.

y, m, r = native_layer_norm(x, w, b)     becomes, for whoever reads y,     y = (x - m) * r * w + b

in a joint graph: that is pointwise, so a backward makes it anew from x, m and r, which it reads anyway. Where the norm
itself runs, `fold` puts its own y back."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
NORM = "norm"  # in the meta of a y made anew: the name of its norm


def spread(gm: fx.GraphModule) -> None:
    """In a joint graph, under the fake mode that it was traced in."""
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for norm in gm.graph.find_nodes(op="call_function", target=aten.native_layer_norm.default):
        parts = {user.args[1]: user for user in norm.users}
        if set(parts) != {0, 1, 2} or not parts[0].users:
            continue
        x, _, weight, bias, _ = norm.args
        readers = list(parts[0].users)
        with gm.graph.inserting_before(min(readers, key=order.__getitem__)):
            y = _again(gm, x, parts[1], parts[2], weight, bias)
        y.meta[NORM] = norm.name
        for reader in readers:
            reader.replace_input_with(parts[0], y)


def _again(gm: fx.GraphModule, x: Any, mean: fx.Node, rstd: fx.Node, weight: Any, bias: Any) -> fx.Node:
    """(x - mean) * rstd * weight + bias, in the wider of their dtypes and at last in that of x."""
    dtype = x.meta["val"].dtype
    exact = torch.promote_types(dtype, torch.float32)
    y = x if dtype == exact else _call(gm, aten._to_copy.default, x, dtype=exact)
    y = _call(gm, aten.mul.Tensor, _call(gm, aten.sub.Tensor, y, mean), rstd)
    y = y if weight is None else _call(gm, aten.mul.Tensor, y, weight)
    y = y if bias is None else _call(gm, aten.add.Tensor, y, bias)
    return y if y.meta["val"].dtype == dtype else _call(gm, aten._to_copy.default, y, dtype=dtype)


def _call(gm: fx.GraphModule, target: Any, *args: fx.Node, **kwargs: Any) -> fx.Node:
    node = gm.graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*(a.meta["val"] for a in args), **kwargs)
    return node


def fold(gm: fx.GraphModule) -> None:
    """In a half of the joint graph; what made the y anew is left unused."""
    norms = {n.name: n for n in gm.graph.find_nodes(op="call_function", target=aten.native_layer_norm.default)}
    for y in [n for n in gm.graph.nodes if n.meta.get(NORM) in norms]:
        norm = norms[y.meta[NORM]]
        with gm.graph.inserting_after(norm):
            own = gm.graph.call_function(operator.getitem, (norm, 0))
        own.meta = dict(y.meta)
        y.replace_all_uses_with(own)
