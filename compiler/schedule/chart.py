"""A timeline as text: a line a rank, a column a unit of time; what is idle is a dot."""

from __future__ import annotations

from specc.compiler.schedule.simulate import Span, Timeline


def draw(timeline: Timeline, columns: int = 120) -> str:
    """`F3` is a forward of microbatch 3; the later stages of a rank are in small letters. Work goes on through `-`."""
    scale = columns / timeline.seconds if timeline.seconds else 0.0
    return "".join(f"{rank:2} {_line(spans, scale, columns)}\n" for rank, spans in enumerate(timeline.ranks))


def _line(spans: tuple[Span, ...], scale: float, columns: int) -> str:
    cells = ["."] * columns
    first = min((span.slot.stage for span in spans), default=0)
    for span in spans:
        begin, end = round(span.start * scale), round(span.end * scale)
        word = f"{span.slot.kind}{span.slot.microbatch}"
        text = (word if span.slot.stage == first else word.lower()).ljust(end - begin, "-")
        cells[begin:end] = text[: end - begin]
    return "".join(cells)
