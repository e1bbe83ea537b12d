"""Makes functional what autograd writes in place into values of its own.

b = masked_fill_(a, m, 0); c = f(a)     becomes     b = masked_fill(a, m, 0); c = f(b)"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from specc.spec.errors import Diagnostic, SpecError

aten = torch.ops.aten


def functional(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with a new value for each that an op of ATen writes over. Raises SpecError where others see the same
    memory later, as an op of the user's may do."""
    place, made = {node: i for i, node in enumerate(gm.graph.nodes)}, dict[fx.Node, fx.Node]()
    for node in list(gm.graph.nodes):
        if not _writes(node):
            continue
        op, x = _without_writing(node.target), node.args[0]
        if op is None or _is_seen_later(node, place):
            text = f"{node.target} writes over a value that is read in other places too, which graphs cannot hold"
            raise SpecError(
                Diagnostic("S402", text, None, "functions that give new values, in the op and its gradient")
            )
        new = made[node] = _with_type_of(node, op, gm.graph)
        place[new] = place[node]
        node.replace_all_uses_with(new)
        for user in [u for u in x.users if place.get(u, -1) > place[node]]:
            user.replace_input_with(x, new)
        gm.graph.erase_node(node)
    for new in made.values():  # so far it had the memory that it was written to, by which views of that were found
        with new.meta["val"].fake_mode:
            new.meta["val"] = torch.empty_like(new.meta["val"])
    gm.recompile()
    return gm


def _with_type_of(node: fx.Node, op: torch._ops.OpOverload, graph: fx.Graph) -> fx.Node:
    """What a write leaves, which keeps its type: sums of other types are brought to it."""
    x: Any = node.args[0]
    val = x.meta["val"]
    with val.fake_mode:
        found = op(*fx.map_arg(node.args, lambda n: n.meta["val"]), **fx.map_arg(node.kwargs, lambda n: n.meta["val"]))
    with graph.inserting_after(node):
        new = graph.call_function(op, node.args, node.kwargs)
    new.meta = {**node.meta, "val": found}
    if found.dtype == val.dtype and found.shape == val.shape:
        new.meta["val"] = val
        return new
    with graph.inserting_after(new):
        cast = graph.call_function(aten._to_copy.default, (new,), {"dtype": val.dtype})
    cast.meta = {**node.meta, "val": val}
    return cast


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _without_writing(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """`masked_fill` for `masked_fill_`, with the same operands."""
    space, _, name = target._schema.name.partition("::")
    packet = getattr(aten, name[:-1], None) if space == "aten" and name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def _is_seen_later(node: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Whether other values in the same memory as the one written over are used later, or are operands."""
    x: Any = node.args[0]
    memory = x.meta["val"].untyped_storage()._cdata
    others = [
        n for n in place
        if n is not x and n is not node and not _writes(n) and isinstance(v := n.meta.get("val"), torch.Tensor)
        and v.untyped_storage()._cdata == memory
    ]  # fmt: skip
    return x.op != "call_function" or any(place.get(u, -1) > place[node] for n in others for u in n.users)
