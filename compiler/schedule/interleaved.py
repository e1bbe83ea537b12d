"""Interleaved 1F1B (arXiv:2104.04473): each rank has several stages, and goes through them in rounds.

A round takes as many microbatches as there are ranks through all the stages of a rank."""

from __future__ import annotations

from specc.compiler.schedule.slots import Slot, Table
from specc.compiler.schedule.writer import Writer


def interleaved(ranks: int, microbatches: int, chunks: int) -> Table:
    assert microbatches % ranks == 0
    return Table(tuple(_rank(r, ranks, microbatches, chunks) for r in range(ranks)))


def _rank(r: int, ranks: int, microbatches: int, chunks: int) -> tuple[Slot, ...]:
    out = Writer()
    n = microbatches * chunks
    there = [r + ranks * (i // ranks % chunks) for i in range(n)]
    back = [r + ranks * (chunks - 1 - i // ranks % chunks) for i in range(n)]
    ahead = min(n, (chunks - 1) * ranks + 2 * (ranks - 1 - r))
    for stage in there[:ahead]:
        out.add("F", stage)
    for f, b in zip(there[ahead:], back, strict=False):
        out.add("FB", f, b)
    for stage in back[n - ahead :]:
        out.add("B", stage)
    return tuple(out.slots)
