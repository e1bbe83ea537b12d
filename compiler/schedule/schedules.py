"""The pipeline schedules by the name that a plan gives them, and the numbers that each of them is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specc.compiler.schedule.dualpipe_v import dualpipe_v
from specc.compiler.schedule.gpipe import gpipe
from specc.compiler.schedule.interleaved import interleaved
from specc.compiler.schedule.one_f_one_b import one_f_one_b
from specc.compiler.schedule.slots import Table, Where, loop, v
from specc.compiler.schedule.zero_bubble import zb_h1, zb_v
from specc.spec.errors import Diagnostic, SpecError


@dataclass(frozen=True)
class Schedule:
    """`generate(ranks, microbatches, chunks)`; a rank has `least` to `most` stages (chunks), laid out by `where`.

    Microbatches are at least `fill` times the ranks, and with `rounds` a multiple of them."""

    generate: Callable[[int, int, int], Table]
    where: Callable[[int, int], Where]
    least: int
    most: int
    fill: int = 0
    rounds: bool = False


SCHEDULES: Mapping[str, Schedule] = {
    "gpipe": Schedule(gpipe, loop, 1, 1),
    "1f1b": Schedule(one_f_one_b, loop, 1, 1),
    "interleaved": Schedule(interleaved, loop, 2, 64, rounds=True),
    "zb-h1": Schedule(zb_h1, loop, 1, 1),
    "zb-v": Schedule(zb_v, v, 2, 2),
    "dualpipe-v": Schedule(dualpipe_v, v, 2, 2, fill=2),
}


def pipeline(name: str, ranks: int, microbatches: int, chunks: int | None = None) -> tuple[Table, Where]:
    """What each rank computes, and the rank of each stage. Raises SpecError for numbers that do not fit.

    `chunks` are the stages of a rank; without a word as few as the schedule has."""
    row = SCHEDULES[name]
    n = row.least if chunks is None else chunks
    if not row.least <= n <= row.most:
        allowed = str(row.least) if row.least == row.most else f"{row.least} to {row.most}"
        hint = f"schedule.chunks: {max(row.least, min(n, row.most))}"
        raise SpecError(Diagnostic("S525", f"'{name}' has {allowed} stages a rank, not {n}", None, hint))
    if microbatches < row.fill * ranks or (row.rounds and microbatches % ranks):
        why, change = _why(name, row, ranks, microbatches), _change(row, ranks, microbatches)
        raise SpecError(Diagnostic("S526", why, None, change))
    return row.generate(ranks, microbatches, n), row.where(ranks, n)


def _why(name: str, row: Schedule, ranks: int, microbatches: int) -> str:
    rule = f"a multiple of its {ranks} ranks" if row.rounds else f"at least {row.fill * ranks} on {ranks} ranks"
    return f"'{name}' takes microbatches that are {rule}, and a step has {microbatches}"


def _change(row: Schedule, ranks: int, microbatches: int) -> str:
    up = -(-microbatches // ranks) * ranks if row.rounds else row.fill * ranks
    return f"{up} microbatches (batch.sequences / batch.microbatch), or schedule.kind: 1f1b"
