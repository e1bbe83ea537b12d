"""What the kernels of a block replace: ops and bytes moved, forward and backward, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from specc.compiler.graphs import Graphs
from specc.compiler.work import Work, graph_work


@dataclass(frozen=True)
class Coverage:
    """`ops` are kernels that run (views do not), `bytes` what those beside products read and write, each with ATen
    alone and with kernels. `left` counts row-wise ops that are in no kernel by why they are not."""

    ops: tuple[int, int]
    bytes: tuple[int, int]
    left: Mapping[str, int]


def coverage(before: Graphs, after: Graphs, left: Mapping[str, str]) -> Coverage:
    """Of a block, from its graphs with and without kernels."""
    a, b = _both(before), _both(after)
    return Coverage((a.nodes, b.nodes), (int(a.bytes), int(b.bytes)), dict(sorted(Counter(left.values()).items())))


def _both(g: Graphs) -> Work:
    return sum((graph_work(gm) for gm in (g.fwd, g.bwd) if gm is not None), Work())
