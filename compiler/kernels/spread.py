"""What of a graph over rows is one kernel: along which axes values vary, what sums over rows, what is left to torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from specc.compiler.kernels.formulas import COSTLY, FILLS, SUMS

Axes = frozenset[int]


class NotRowWise(Exception):
    """The graph does something else than compute rows."""


@dataclass(frozen=True)
class Layout:
    """What of a tensor's dims are rows (which axes, in order), and how many columns it has."""

    axes: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Spread:
    """`held` are the axes along which a node's value varies. `partial` are sums over rows, with the axes they keep.

    `after` are nodes left to torch: what is computed of sums, and sums that no program can hold. `groups` are runs of
    axes that all values hold alike; the first `outer` of them pick the rows that a program sums over."""

    layouts: Mapping[fx.Node, Layout]
    held: Mapping[fx.Node, Axes]
    partial: Mapping[fx.Node, Axes]
    after: tuple[fx.Node, ...]
    stored: tuple[fx.Node, ...]
    groups: tuple[tuple[int, ...], ...]
    outer: int


def args_of(node: fx.Node) -> list[Any]:
    """The arguments of a node, whose kinds its op tells."""
    return list(node.args)


def results(gm: fx.GraphModule) -> tuple[fx.Node, ...]:
    outputs: Any = gm.graph.output_node().args[0]
    return tuple(outputs)


def layout_of(node: fx.Node, axes: Mapping[int, int]) -> Layout:
    """The layout of a node's value; dims of size one are nowhere. `axes` tells an axis by its size."""
    sizes = [n for n in node.meta["val"].shape if n != 1]
    rows = [axes[n] for n in sizes if n in axes]
    if any(n in axes for n in sizes[len(rows) :]) or rows != sorted(set(rows)):
        raise NotRowWise("its rows do not lie one behind the other")
    return Layout(tuple(rows), math.prod(sizes[len(rows) :]))


def spread(gm: fx.GraphModule, axes: Mapping[int, int]) -> Spread:
    """Sort the nodes of a graph."""
    layouts: dict[fx.Node, Layout] = {}
    held: dict[fx.Node, Axes] = {}
    partial: dict[fx.Node, Axes] = {}
    after: dict[fx.Node, None] = {}
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        if not isinstance(node.meta["val"], list | tuple):
            layouts[node] = layout_of(node, axes)
        if any(i in after or i in partial for i in node.all_input_nodes):
            after[node] = None
            continue
        held[node] = frozenset(layouts[node].axes) if node.op == "placeholder" else _union(node, held)
        summed = summed_axes(node, axes)
        if summed and held[node] == frozenset(range(len(axes))):
            partial[node] = held[node] - summed
        elif summed or (node.target in FILLS and node in _outputs(gm)):
            after[node] = None
    groups = _groups([*(held[n] for n in gm.graph.find_nodes(op="placeholder")), *partial.values()], len(axes))
    for node, keeps in list(partial.items()):
        if sorted(keeps) != [a for g in groups[: _count(keeps, groups)] for a in g]:
            del partial[node]
            after = {n: None for n in gm.graph.nodes if n in after or n is node}
    outer = max([0, *(_count(k, groups) for k in partial.values()), *_costly(held, groups)])
    return Spread(layouts, held, partial, tuple(after), _stored(gm, partial, after), groups, outer)


def summed_axes(node: fx.Node, axes: Mapping[int, int]) -> Axes:
    """Axes of rows that a node sums over."""
    if node.target not in SUMS:
        return frozenset()
    shape = node.all_input_nodes[0].meta["val"].shape
    return frozenset(axes[shape[d]] for d in reduced_dims(node) if shape[d] in axes)


def reduced_dims(node: fx.Node) -> list[int]:
    """The dims over which a reduction goes, from the front."""
    n_dims = node.all_input_nodes[0].meta["val"].ndim
    _, given = [*args_of(node), None][:2]
    dims = list(range(n_dims)) if not given else given if isinstance(given, list | tuple) else [given]
    return [d % n_dims for d in dims]


def _union(node: fx.Node, held: Mapping[fx.Node, Axes]) -> Axes:
    return frozenset().union(*(held[i] for i in node.all_input_nodes))


def _outputs(gm: fx.GraphModule) -> list[fx.Node]:
    return list(gm.graph.output_node().all_input_nodes)


def _groups(sets: Sequence[Axes], n: int) -> tuple[tuple[int, ...], ...]:
    groups: list[tuple[int, ...]] = []
    for a in range(n):
        if groups and all((a in s) == (a - 1 in s) for s in sets):
            groups[-1] = (*groups[-1], a)
        else:
            groups.append((a,))
    return tuple(groups)


def _costly(held: Mapping[fx.Node, Axes], groups: Sequence[Sequence[int]]) -> list[int]:
    """How many outer groups the angles of rotations vary along, if they are the same along the others: so they are
    computed once for all heads of a token."""
    counts = [_count(h, groups) for n, h in held.items() if n.target in COSTLY]
    return [n for n in counts if n < len(groups)]


def _count(keeps: Axes, groups: Sequence[Sequence[int]]) -> int:
    return sum(set(g) <= keeps for g in groups)


def _stored(gm: fx.GraphModule, partial: Mapping[fx.Node, Axes], after: Mapping[fx.Node, None]) -> tuple[fx.Node, ...]:
    """What the kernel writes whole: outputs, and what torch goes on with."""
    wanted = [*_outputs(gm), *(i for n in after for i in n.all_input_nodes)]
    kept = (n for n in wanted if n.op != "placeholder" and n not in after and n not in partial)
    return tuple(dict.fromkeys(kept))
