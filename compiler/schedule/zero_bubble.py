"""Zero bubble (arXiv:2401.10241): weight halves of the backward fill what 1F1B leaves idle.

ZB-H1 keeps as many activations as 1F1B. ZB-V has two stages a rank, there and back again, and no bubble where the three
kinds of slots take the same time."""

from __future__ import annotations

from specc.compiler.schedule.slots import Slot, Table
from specc.compiler.schedule.writer import Writer


def zb_h1(ranks: int, microbatches: int, chunks: int = 1) -> Table:
    assert chunks == 1
    return Table(tuple(_h1(r, ranks, microbatches) for r in range(ranks)))


def _h1(r: int, ranks: int, microbatches: int) -> tuple[Slot, ...]:
    """1F1B, whose weight halves stay `r` microbatches behind."""
    out = Writer()
    ahead = min(ranks - r - 1, microbatches)
    for _ in range(ahead):
        out.add("F", r)
    for i in range(microbatches):
        if i < microbatches - ahead:
            out.add("F", r)
        out.add("I", r)
        if i >= r:
            out.weight()
    out.weight(microbatches)
    return tuple(out.slots)


def zb_v(ranks: int, microbatches: int, chunks: int = 2) -> Table:
    assert chunks == 2
    return Table(tuple(_v(r, ranks, microbatches) for r in range(ranks)))


def _v(r: int, ranks: int, microbatches: int) -> tuple[Slot, ...]:
    """The phases of section 6 of the paper, for at least as many microbatches as fill the pipeline."""
    out, n = Writer(), max(2 * ranks - 1, microbatches)
    a, b = r, 2 * ranks - 1 - r
    for _ in range(2 * (ranks - r) - 1):
        out.add("F", a)
    for _ in range(r):
        out.add("FF", b, a)
    for _ in range(ranks - r):
        out.add("FI", b, b)
        out.weight()
    while out.done["F", b] < n:
        if out.done["F", a] < n:
            out.add("F", a)
        out.add("I", a)
        out.weight()
        out.add("FI", b, b)
        out.weight()
    for _ in range(r):
        out.add("II", a, b)
    for _ in range(ranks - r):
        out.add("I", a)
        out.weight()
    out.weight(2 * n)
    return out.first(microbatches)
