"""How many different tokens, or classes of pictures, a model takes: rows of its tables, and classes of its losses."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from specc.compiler.program import Program
from specc.compiler.types import Dim

TOKENS = ("tokens", "enc_tokens", "labels")  # inputs that data fill with a tokenizer's numbers
SAME = ("rearrange", "slice", "expand")  # ops whose numbers are those of their operand
# Operands: whose last dim are classes, and labels.
LOSSES = {"cross_entropy": (0, 1), "linear_cross_entropy": (1, 2), "log_prob": (0, 1), "linear_log_prob": (1, 2)}


def vocabulary(program: Program) -> Dim | None:
    """The fewest rows or classes that a token of an input may count from; None if no token is looked up."""
    return min((d for d, _ in _counted(program, TOKENS)), key=lambda d: d.size or 0, default=None)


def classes(program: Program) -> dict[str, int]:
    """Of the input `class`: the fewest that a `loss` tells apart, and the fewest rows of a `table` of them."""
    found: dict[str, int] = {}
    for dim, op in _counted(program, ("class",)):
        kind = "table" if op == "embedding" else "loss"
        found[kind] = min(found.get(kind, dim.size or 0), dim.size or 0)
    return found


def _counted(program: Program, inputs: Collection[str]) -> Iterator[tuple[Dim, str]]:
    """The dims that numbers of these inputs count along, and by which op."""
    for call in program.calls:
        body = program.bodies[call.body]
        given, types = dict(zip((v.name for v in body.ins), call.ins, strict=True)), body.types()
        for e in body.eqns:
            if e.op in SAME and e.ins[0] in given:
                given[e.outs[0]] = given[e.ins[0] or ""]
            if e.op == "embedding":
                dim, read = types[e.ins[1] or ""].dims[0], e.ins[0]
            elif e.op in LOSSES:
                classes, labels = LOSSES[e.op]
                dim, read = types[e.ins[classes] or ""].dims[-1], e.ins[labels]
            else:
                continue
            if given.get(read or "") in inputs and dim.size is not None:
                yield dim, e.op
