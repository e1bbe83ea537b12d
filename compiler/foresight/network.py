"""Seconds of a collective over ranks that near and far links join."""

from __future__ import annotations

from dataclasses import dataclass

from specc.compiler.placement.cost import COLLECTIVES
from specc.spec.hardware import Link


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
    """Seconds of one that joins `nbytes`: rings where all ranks of a node send to the next node at the same time."""
    n = group.size
    if n == 1 or not kind:
        return 0.0
    sent = COLLECTIVES[kind](n) * nbytes
    if group.near == n:
        return sent / (near.bandwidth * 1e9) + near.latency * 1e-6 * _hops(n)
    rate = min(near.bandwidth, far.bandwidth * (group.near if kind != "all-to-all" else 1.0 / (1 - group.near / n)))
    return sent / (rate * 1e9) + far.latency * 1e-6 * _hops(n)


def _hops(n: int) -> float:
    """Latencies of a collective: libraries go over to trees where rings would be long."""
    return min(n - 1, 8 + n.bit_length())
