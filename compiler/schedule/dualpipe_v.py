"""DualPipe-V: DualPipe (arXiv:2412.19437) cut in half, so that each rank has two stages, there and back again.

A forward stands beside a backward of the other stage, so that the one's communication runs beside the other's work."""

from __future__ import annotations

from specc.compiler.schedule.slots import Slot, Table
from specc.compiler.schedule.writer import Writer


def dualpipe_v(ranks: int, microbatches: int, chunks: int = 2) -> Table:
    assert chunks == 2
    assert microbatches >= 2 * ranks
    return Table(tuple(_rank(r, ranks, microbatches) for r in range(ranks)))


def _rank(r: int, ranks: int, microbatches: int) -> tuple[Slot, ...]:
    out = Writer()
    a, b = r, 2 * ranks - 1 - r
    after = ranks - r - 1  # ranks between this one and the turn
    for _ in range(2 * after):
        out.add("F", a)
    for _ in range(r + 1):
        out.add("FF", a, b)
    for _ in range(after):
        out.add("I", b)
        out.weight()
        out.add("F", b)
    for _ in range(microbatches - 2 * ranks + r + 1):
        out.add("FBFB", a, b, b, a)
    for _ in range(after):
        out.add("BFB", b, b, a)
    _drain(out, r, after, a, b)
    return tuple(out.slots)


def _drain(out: Writer, r: int, after: int, a: int, b: int) -> None:
    """The last backwards; the second half of them leave their weight halves for the end."""
    whole = r + 1  # of 2 * (r + 1) backwards of both stages
    for i in range(2 * (r + 1)):
        out.add("B" if i < whole else "I", a if i % 2 else b)
    for _ in range(after):
        out.weight()
        out.add("I", a)
    out.weight(r + 1)
