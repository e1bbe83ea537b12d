"""Zero bubble (arXiv:2401.10241): weight halves of the backward fill what 1F1B leaves idle.

ZB-H1 keeps as many activations as 1F1B. ZB-V has two stages a rank, there and back again, and no bubble where the three
kinds of slots take the same time."""

from __future__ import annotations

from specc.compiler.schedule.slots import Order, Slot, Table


def zb_h1(ranks: int, microbatches: int, chunks: int = 1) -> Table:
    assert chunks == 1
    return Table(tuple(_h1(r, ranks, microbatches) for r in range(ranks)))


def _h1(r: int, ranks: int, microbatches: int) -> tuple[Slot, ...]:
    """1F1B, whose weight halves stay `r` microbatches behind."""
    order = Order()
    ahead = min(ranks - r - 1, microbatches)
    for _ in range(ahead):
        order.add("F", r)
    for i in range(microbatches):
        if i < microbatches - ahead:
            order.add("F", r)
        order.add("I", r)
        if i >= r:
            order.weight()
    order.weight(microbatches)
    return tuple(order.slots)


def zb_v(ranks: int, microbatches: int, chunks: int = 2) -> Table:
    assert chunks == 2
    return Table(tuple(_v(r, ranks, microbatches) for r in range(ranks)))


def _v(r: int, ranks: int, microbatches: int) -> tuple[Slot, ...]:
    """The phases of section 6 of the paper, for at least as many microbatches as fill the pipeline."""
    order, n = Order(), max(2 * ranks - 1, microbatches)
    a, b = r, 2 * ranks - 1 - r
    for _ in range(2 * (ranks - r) - 1):
        order.add("F", a)
    for _ in range(r):
        order.add("FF", b, a)
    for _ in range(ranks - r):
        order.add("FI", b, b)
        order.weight()
    while order.done["F", b] < n:
        if order.done["F", a] < n:
            order.add("F", a)
        order.add("I", a)
        order.weight()
        order.add("FI", b, b)
        order.weight()
    for _ in range(r):
        order.add("II", a, b)
    for _ in range(ranks - r):
        order.add("I", a)
        order.weight()
    order.weight(2 * n)
    return order.first(microbatches)
