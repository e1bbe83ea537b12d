"""Saves an operand of a forward graph instead of a view of it, so that the operand may go and come again.

before: fwd(w) -> (y, t(w));  bwd(s, d) -> d @ s           after: fwd(w) -> (y, w);  bwd(w, d) -> d @ t(w)"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
VIEWS = (
    aten.view.default, aten.t.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.expand.default, aten.select.int, aten.slice.Tensor,
)  # fmt: skip


def save_operands(
    fwd: fx.GraphModule, bwd: fx.GraphModule, n_outs: int, which: Container[int]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Both graphs, for the operands with the numbers `which`; other saved values stay."""
    places = {node: i for i, node in enumerate(fwd.graph.find_nodes(op="placeholder"))}
    end = fwd.graph.output_node()
    outputs: Any = end.args[0]
    outs, saved = list(outputs[:n_outs]), list(outputs[n_outs:])
    inner = bwd.graph.find_nodes(op="placeholder")
    first = next(node for node in bwd.graph.nodes if node.op != "placeholder")
    kept: dict[fx.Node, fx.Node] = {}  # what is saved now -> the backward's placeholder
    for node, given in zip(saved, inner[: len(saved)], strict=True):
        chain = views_of(node)
        source = chain[0].args[0] if chain else node
        assert isinstance(source, fx.Node)
        if not chain or places.get(source, -1) not in which:
            known = kept.setdefault(node, given)
            if known is not given:
                given.replace_all_uses_with(known)
                bwd.graph.erase_node(given)
            continue
        users = list(given.users)
        with bwd.graph.inserting_before(first):
            made = kept.setdefault(source, given)
            for view in chain:
                made = bwd.graph.call_function(view.target, (made, *view.args[1:]), dict(view.kwargs))  # type: ignore[arg-type]
                made.meta["val"] = view.meta["val"]
        for user in users:
            user.replace_input_with(given, made)
        if kept[source] is given:
            given.meta = dict(source.meta)
        else:
            bwd.graph.erase_node(given)
    end.args = ((*outs, *kept),)
    for gm in (fwd, bwd):
        gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        gm.recompile()
    return fwd, bwd


def views_of(node: fx.Node) -> list[fx.Node]:
    """The views that lead from a placeholder to a node, in order; none if something else does."""
    chain: list[fx.Node] = []
    while node.target in VIEWS:
        chain.insert(0, node)
        (node,) = node.all_input_nodes
    return chain if node.op == "placeholder" else []
