"""What a call of a graph leaves in memory, and the most that it needs while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from specc.compiler.graphs import Graphs, node_type, tensor_bytes
from specc.compiler.lower.collectives import WAIT, c10d
from specc.compiler.program import Call
from specc.compiler.work import Stretch, storages, stretches

ALL_REDUCE = c10d.all_reduce.default


@dataclass(frozen=True)
class Footprint:
    """For each result the operand whose memory it lies in, or -1 - i for the i-th memory of the call's own. Behind the
    results comes what collectives that begin in the graph, and are not waited for there, read.

    `own` are the bytes of these; `stretches` tell what the call has alive beyond its operands."""

    results: tuple[int, ...]
    own: tuple[int, ...]
    stretches: tuple[Stretch, ...]

    def peak(self, operands: Sequence[int], going: Mapping[int, int]) -> int:
        """The most bytes beyond these memories as operands; `going` are bytes of those that go at their last use."""
        used = ((i, place) for i, s in enumerate(self.stretches) for place in s.last_used if place < len(operands))
        last = {operands[place]: i for i, place in used}
        ends = [0] * len(self.stretches)
        for memory, nbytes in going.items():
            ends[last[memory]] += nbytes
        most = gone = 0
        for stretch, end in zip(self.stretches, ends, strict=True):
            most = max(most, stretch.most - gone)
            gone += end
        return most


def footprint(gm: fx.GraphModule) -> Footprint:
    """The footprint of one call."""
    operands: dict[int, int] = {}
    for i, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        operands |= {key: i for key in storages([node])}
    found: dict[int, int] = {}
    own: list[int] = []
    results: list[int] = []
    outputs: Any = gm.graph.output_node().args[0]
    for node in (*outputs, *read_later(gm)):
        ((key, nbytes),) = storages([node]).items()
        if key not in operands and key not in found:
            found[key] = -1 - len(own)
            own.append(nbytes)
        results.append(operands[key] if key in operands else found[key])
    return Footprint(tuple(results), tuple(own), stretches(gm))


def read_later(gm: fx.GraphModule) -> list[fx.Node]:
    """What collectives read until somebody else waits for them; an all-reduce has a copy."""
    nodes = gm.graph.nodes
    begun = [n for n in nodes if str(n.target).startswith("_c10d_functional.") and n.target != WAIT]
    left = [n for n in begun if not any(user.target == WAIT for user in n.users)]
    return [n.args[0] for n in left if n.target != ALL_REDUCE]


Feet = Mapping[str, Mapping[str, Footprint]]  # by body and part


def footprints(graphs: Mapping[str, Graphs]) -> Feet:
    """Those of all graphs."""
    return {name: {part: footprint(gm) for part, gm in g.parts().items()} for name, g in graphs.items()}


def value_bytes(calls: Sequence[Call], graphs: Mapping[str, Graphs]) -> dict[str, int]:
    """Bytes of the values between calls."""
    found: dict[str, int] = {}
    for call in calls:
        outs: Any = graphs[call.body].fwd.graph.output_node().args[0]
        found |= {name: tensor_bytes(node_type(node)) for name, node in zip(call.outs, outs, strict=False)}
    return found
