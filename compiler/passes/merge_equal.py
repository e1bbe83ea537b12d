"""Merges equal nodes of a functional graph.

a = exp(x); b = exp(x); c = a + b     becomes     a = exp(x); c = a + a"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def merge_equal(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with one node for each call of an op on the same operands; draws of random numbers all stay."""
    first: dict[object, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or _draws(node.target):
            continue
        key = (node.target, exact(node.args), exact(node.kwargs))
        known = first.setdefault(key, node)
        if known is not node:
            node.replace_all_uses_with(known)
            gm.graph.erase_node(node)
    gm.recompile()
    return gm


def exact(a: Any) -> object:
    """An argument as a key under which 1, 1.0 and True differ, and 0.0 and -0.0."""
    if isinstance(a, fx.Node):
        return a
    if isinstance(a, list | tuple):
        return tuple(map(exact, a))
    if isinstance(a, dict):
        return tuple((name, exact(value)) for name, value in sorted(a.items()))
    return type(a), repr(a)


def _draws(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
