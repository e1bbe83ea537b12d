"""Interleaved 1F1B (arXiv:2104.04473): each rank has several stages, and goes through them in rounds.

A round takes as many microbatches as there are ranks through all the stages of a rank."""

from __future__ import annotations

from specc.compiler.schedule.slots import Order, Slot, Table


def interleaved(ranks: int, microbatches: int, chunks: int) -> Table:
    assert microbatches % ranks == 0
    return Table(tuple(_rank(r, ranks, microbatches, chunks) for r in range(ranks)))


def _rank(r: int, ranks: int, microbatches: int, chunks: int) -> tuple[Slot, ...]:
    order = Order()
    n = microbatches * chunks
    there = [r + ranks * (i // ranks % chunks) for i in range(n)]
    back = [r + ranks * (chunks - 1 - i // ranks % chunks) for i in range(n)]
    ahead = min(n, (chunks - 1) * ranks + 2 * (ranks - 1 - r))
    for stage in there[:ahead]:
        order.add("F", stage)
    for f, b in zip(there[ahead:], back, strict=False):
        order.add("FB", f, b)
    for stage in back[n - ahead :]:
        order.add("B", stage)
    return tuple(order.slots)
