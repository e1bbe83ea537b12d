"""Seconds of a collective over ranks that near and far links join."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specc.compiler.placement.cost import COLLECTIVES
from specc.spec.hardware import Link

RINGS = ("all-gather", "reduce-scatter")
TREE = 0.92 * 0.7  # share of a ring's bandwidth that NCCL counts on in trees for 32 to 64 MB (src/graph/tuning.cc)


@dataclass(frozen=True)
class Group:
    """`size` ranks with `stride` ranks from one to the next, on nodes of `node` devices."""

    size: int
    stride: int
    node: int

    @property
    def near(self) -> int:
        """How many of the group are in one node."""
        return max(1, min(self.size, self.node // self.stride))


def collective(kind: str, nbytes: float, group: Group, near: Link, far: Link) -> float:
    """Seconds of one that joins `nbytes`: rings where all ranks of a node send to the next node at the same time.

    Between nodes NCCL sums round a ring or over a tree, whichever takes less."""
    n = group.size
    if n == 1 or not kind:
        return 0.0
    sent = COLLECTIVES[kind](n) * nbytes
    if group.near == n:
        return sent / (near.bandwidth * 1e9) + _latency(kind, group, near, far)
    rate = min(near.bandwidth, far.bandwidth * (group.near if kind != "all-to-all" else 1.0 / (1 - group.near / n)))
    seconds = sent / (rate * 1e9)
    if kind != "all-reduce":
        return seconds + _latency(kind, group, near, far)
    ring = seconds + 2 * _latency("all-gather", group, near, far)
    return min(ring, seconds / TREE + _latency(kind, group, near, far))


def _latency(kind: str, group: Group, near: Link, far: Link) -> float:
    """Seconds of the steps of a collective, one after the other.

    NCCL gathers and scatters round a ring, which leaves each node once; sums go over trees, and what goes from all to
    all goes at the same time."""
    n, nodes = group.size, math.ceil(group.size / group.near)
    if kind in RINGS:
        return 1e-6 * (near.latency * (n - nodes) + far.latency * (nodes - 1))
    return 1e-6 * (far if nodes > 1 else near).latency * min(n - 1, 8 + n.bit_length())
