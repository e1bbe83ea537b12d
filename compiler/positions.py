"""Tables of learned positions have a row for each token of a stage's rows, or the stage is not built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from specc.compiler.program import Body, Program
from specc.compiler.types import size_of
from specc.spec.errors import Diagnostic, Mark, SpecError

COUNTED = ("pos", "enc_pos", "block_pos")  # fields of the data that count the tokens of a row


def check_positions(program: Program, sizes: Mapping[str, int], mark: Mark | None) -> None:
    """Raises SpecError for each table that rows of these sizes would be read past."""
    short: dict[str, Diagnostic] = {}
    for call in program.calls:
        body = program.bodies[call.body]
        given = dict(zip((v.name for v in body.ins), call.ins, strict=True))
        paths = dict(zip((p.name for p in body.params), call.params, strict=True))
        types = body.types()
        for index, table in lookups(body):
            rows, tokens = size_of(types[table].dims[0], sizes), size_of(types[index].dims[-1], sizes)
            if rows < tokens and given.get(index, "pos") in COUNTED:
                path = paths.get(table, table)
                message = f"the table '{path}' has {rows} positions, the stage's rows have {tokens} tokens"
                short[path] = Diagnostic("S201", message, mark, "make the rows shorter, or the table longer")
    if short:
        raise SpecError(*short.values())


def lookups(body: Body) -> Iterator[tuple[str, str]]:
    """Index and table of each embedding of an operand of the body, or of `index`."""
    ready = {v.name for v in body.ins} | {e.outs[0] for e in body.eqns if e.op == "index"}
    for e in body.eqns:
        if e.op == "embedding" and e.ins[0] in ready:
            index, table = e.ins
            assert index
            assert table
            yield index, table
