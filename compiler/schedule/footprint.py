"""What a call of a graph leaves in memory, and the most that it needs while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from specc.compiler.graphs import Graphs
from specc.compiler.work import peak_bytes, storages


@dataclass(frozen=True)
class Footprint:
    """For each result the operand whose memory it lies in, or -1 - i for the i-th memory of the call's own.

    `own` are the bytes of these; `peak` is the most that the call has alive beyond its operands."""

    results: tuple[int, ...]
    own: tuple[int, ...]
    peak: int


def footprint(gm: fx.GraphModule) -> Footprint:
    """The footprint of one call."""
    operands: dict[int, int] = {}
    for i, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        operands |= {key: i for key in storages([node])}
    found: dict[int, int] = {}
    own: list[int] = []
    results: list[int] = []
    outputs: Any = gm.graph.output_node().args[0]
    for node in outputs:
        ((key, nbytes),) = storages([node]).items()
        if key not in operands and key not in found:
            found[key] = -1 - len(own)
            own.append(nbytes)
        results.append(operands[key] if key in operands else found[key])
    return Footprint(tuple(results), tuple(own), peak_bytes(gm))


Feet = Mapping[str, Mapping[str, Footprint]]  # by body and part


def footprints(graphs: Mapping[str, Graphs]) -> Feet:
    """Those of all graphs."""
    return {name: {part: footprint(gm) for part, gm in g.parts().items()} for name, g in graphs.items()}
