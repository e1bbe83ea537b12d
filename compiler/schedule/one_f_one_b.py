"""1F1B (arXiv:1806.03377): as few forwards ahead as fill the pipeline, then a backward after each forward."""

from __future__ import annotations

from specc.compiler.schedule.slots import Slot, Table
from specc.compiler.schedule.writer import Writer


def one_f_one_b(ranks: int, microbatches: int, chunks: int = 1) -> Table:
    assert chunks == 1
    return Table(tuple(_rank(r, ranks, microbatches) for r in range(ranks)))


def _rank(r: int, ranks: int, microbatches: int) -> tuple[Slot, ...]:
    out = Writer()
    ahead = min(ranks - r - 1, microbatches)
    for _ in range(ahead):
        out.add("F", r)
    for _ in range(microbatches - ahead):
        out.add("FB", r, r)
    for _ in range(ahead):
        out.add("B", r)
    return tuple(out.slots)
