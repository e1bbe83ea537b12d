"""Which ops of a graph a compiler makes one kernel of: row-wise ops that follow one another without a product between
them."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator
from typing import Any

import torch
from torch import fx

from specc.compiler.work import is_view

# Ops of ATen that are kernels of their own, beside all of specc's.
ALONE = {
    "mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_backward", "embedding_dense_backward", "index_put",
    "scatter", "scatter_add", "scatter_reduce", "index_add", "sort", "topk", "multinomial", "nonzero",
}  # fmt: skip
SENT = ("_c10d_functional", "specc.exchange", "specc.shift")  # what goes between ranks


def name_of(node: fx.Node) -> str:
    """`aten.mm`, say; nothing for what is no operator."""
    return str(node.target).removesuffix(".default") if isinstance(node.target, torch._ops.OpOverload) else ""


def is_sent(node: fx.Node) -> bool:
    return name_of(node).startswith(SENT)


def is_alone(node: fx.Node) -> bool:
    """Whether an op is a kernel that nothing is fused into."""
    space, op = _parts(node)
    return space in ("specc", "_c10d_functional") or op in ALONE or "scaled_dot_product" in op


def _parts(node: fx.Node) -> tuple[str, str]:
    """`aten` and `mm`, say."""
    space, _, op = name_of(node).partition(".")
    return space, op.split(".")[0]


def fuses(gm: fx.GraphModule) -> bool:
    """Whether a compiler finds anything to make one kernel of."""
    return any(len(group) > 1 for group in groups(gm))


def groups(gm: fx.GraphModule) -> Iterator[list[fx.Node]]:
    """Row-wise ops that depend on each other with no other op on the way; views belong to nothing."""
    depth: dict[fx.Node, int] = {}
    leader: dict[fx.Node, fx.Node] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        inputs = node.all_input_nodes
        depth[node] = max((depth[i] + is_alone(_root(i)) for i in inputs), default=0)
        if not is_row_wise(node):
            continue
        before = dict.fromkeys(leader[r] for i in inputs if (r := _root(i)) in leader and depth[r] == depth[node])
        members[node] = [n for other in before for n in members.pop(other)] + [node]
        leader |= dict.fromkeys(members[node], node)
    yield from members.values()


def is_row_wise(node: fx.Node) -> bool:
    return node.op == "call_function" and not _is_part(node) and not is_alone(node)


def _is_part(node: fx.Node) -> bool:
    """Whether a node is another's value: a view of it, or one of several outputs."""
    return node.op == "call_function" and (is_view(node) or node.target is operator.getitem)


def _root(node: fx.Node) -> fx.Node:
    """What a view, or a part of several outputs, is of."""
    while _is_part(node):
        node = node.all_input_nodes[0]
    return node


def users(node: fx.Node, through: Container[Any] = ()) -> Iterator[fx.Node]:
    """Those of a value, of its views, and of what the ops `through` make of it."""
    for user in node.users:
        if _is_part(user) or user.target in through:
            yield from users(user, through)
        else:
            yield user
