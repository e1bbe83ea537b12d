"""The schedules of pipelines: their text, their bubbles by the papers' formulas, and torch's own as an oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as theirs

from specc.compiler.schedule.chart import draw
from specc.compiler.schedule.schedules import SCHEDULES, pipeline
from specc.compiler.schedule.simulate import Timeline, simulate
from specc.compiler.schedule.slots import Slot, SlotKind, Table, Where, loop, parse_table, v
from specc.spec.errors import SpecError

EQUAL = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}


def timeline(name: str, ranks: int, microbatches: int, costs: dict[str, float], chunks: int | None = None) -> Timeline:
    table, where = pipeline(name, ranks, microbatches, chunks)
    return simulate(table, where, lambda slot: costs[slot.kind] * ranks / len(where))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_on_four_ranks(name: str, golden: Callable[[str, str], None]) -> None:
    table, where = pipeline(name, 4, 8)
    chart = draw(timeline(name, 4, 8, EQUAL))
    golden(f"schedule/{name}.txt", f"{table}\nstages on ranks {' '.join(map(str, where))}\n\n{chart}")
    assert parse_table(str(table)) == table


def test_stages_sit_around_the_ranks_or_there_and_back() -> None:
    assert loop(3, 2) == (0, 1, 2, 0, 1, 2)
    assert v(3, 2) == (0, 1, 2, 2, 1, 0)


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 2), (4, 8), (5, 3), (8, 32)])
def test_the_bubble_of_one_stage_a_rank(name: str, p: int, m: int) -> None:
    made = timeline(name, p, m, EQUAL)
    assert [made.bubble(r) for r in range(p)] == pytest.approx([(p - 1) / (m + p - 1)] * p)


@pytest.mark.parametrize(("p", "m", "chunks"), [(2, 4, 2), (4, 8, 2), (4, 16, 4), (3, 6, 3)])
def test_interleaving_divides_the_bubble_by_the_stages_of_a_rank(p: int, m: int, chunks: int) -> None:
    made = timeline("interleaved", p, m, EQUAL, chunks)
    assert made.seconds - 3 * m == pytest.approx(3 * (p - 1) / chunks)


@pytest.mark.parametrize(("f", "i", "w"), [(1.0, 1.0, 1.0), (1.0, 1.25, 0.75), (1.0, 1.0, 0.5)])
@pytest.mark.parametrize(("p", "m"), [(2, 6), (4, 12), (8, 24)])
def test_zb_h1_leaves_f_and_i_without_w_a_rank(p: int, m: int, f: float, i: float, w: float) -> None:
    """Table 1 of arXiv:2401.10241: (p - 1)(F + I - W), with the activations of 1F1B."""
    made = timeline("zb-h1", p, m, {"F": f, "I": i, "W": w})
    assert made.seconds - m * (f + i + w) == pytest.approx((p - 1) * (f + i - w))
    assert max(made.live_of_rank) == max(timeline("1f1b", p, m, EQUAL).live_of_rank) == p


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 12), (8, 24)])
def test_zb_v_never_waits_where_slots_take_the_same_time(p: int, m: int) -> None:
    """Section 6 of arXiv:2401.10241: no rank stands idle between its first slot and its last; memory as in 1F1B."""
    made = timeline("zb-v", p, m, EQUAL)
    assert [made.span(r) for r in range(p)] == pytest.approx([3.0 * m] * p)
    assert max(made.live_of_rank) == 2 * p  # activations of half a rank's layers


@pytest.mark.parametrize(("p", "m"), [(2, 6), (4, 12), (8, 24)])
def test_dualpipe_v_has_the_bubble_of_its_paper(p: int, m: int) -> None:
    """Table 2 of arXiv:2412.19437 on half its ranks: (p - 1)(F&B + B - 3W). Here F&B takes F + B: nothing overlaps."""
    f, i, w = 1.0, 1.0, 1.0
    made = timeline("dualpipe-v", p, m, {"F": 2 * f, "B": 2 * (i + w), "I": 2 * i, "W": 2 * w})
    idle = max(made.span(r) for r in range(p)) - 2 * m * (f + i + w)
    assert idle == pytest.approx((p - 1) * (f + i + w + i - 3 * w))


@pytest.mark.parametrize(
    ("name", "microbatches", "chunks", "code", "hint"),
    [
        ("1f1b", 4, 2, "S525", "schedule.chunks: 1"),
        ("interleaved", 8, 1, "S525", "schedule.chunks: 2"),
        ("interleaved", 6, 2, "S526", "8 microbatches"),
        ("dualpipe-v", 7, 2, "S526", "8 microbatches"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    name: str, microbatches: int, chunks: int | None, code: str, hint: str
) -> None:
    with pytest.raises(SpecError) as e:
        pipeline(name, 4, microbatches, chunks)
    assert e.value.codes == (code,)
    assert hint in e.value.diagnostics[0].hint


class _Stage:
    """What a schedule of torch asks of a stage before it makes its order."""

    def __init__(self, index: int, ranks: int, stages: int) -> None:
        self.stage_index, self.num_stages, self.group_size, self.group_rank = index, stages, ranks, index % ranks
        self.is_first, self.is_last, self.has_backward, self.submod = index == 0, index == stages - 1, True, None


THEIRS: dict[str, Any] = {
    "gpipe": theirs.ScheduleGPipe, "1f1b": theirs.Schedule1F1B, "interleaved": theirs.ScheduleInterleaved1F1B,
    "zb-h1": theirs.ScheduleInterleavedZeroBubble, "zb-v": theirs.ScheduleZBVZeroBubble,
    "dualpipe-v": theirs.ScheduleDualPipeV,
}  # fmt: skip
KINDS: dict[str, SlotKind] = {"F": "F", "B": "B", "I": "I", "W": "W"}


def of_torch(name: str, ranks: int, microbatches: int, chunks: int) -> Table:
    """torch's order, without what is not computation."""
    stages = [_Stage(c * ranks, ranks, ranks * chunks) for c in range(chunks)]
    single = issubclass(THEIRS[name], theirs.PipelineScheduleSingle)
    made = THEIRS[name](stages[0] if single else stages, microbatches, loss_fn=lambda: None)
    flat = [[b for a in made.pipeline_order[r] if a for b in (a.sub_actions or (a,))] for r in range(ranks)]
    return Table(tuple(
        tuple(Slot(KINDS[a.computation_type.value], a.stage_index, a.microbatch_index) for a in each
              if a.computation_type.value in KINDS)
        for each in flat
    ))  # fmt: skip


def facts(table: Table, where: Where) -> tuple[float, tuple[int, ...]]:
    made = simulate(table, where, lambda slot: EQUAL[slot.kind])
    return made.seconds, made.live_of_rank


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (2, 8), (4, 8), (4, 12), (8, 32)])
@pytest.mark.parametrize("name", ["gpipe", "interleaved", "zb-h1", "dualpipe-v"])
def test_torch_has_the_same_order(name: str, ranks: int, microbatches: int) -> None:
    table, where = pipeline(name, ranks, microbatches)
    assert table == of_torch(name, ranks, microbatches, len(where) // ranks)


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 8), (8, 32)])
def test_torch_has_the_same_order_of_1f1b(ranks: int, microbatches: int) -> None:
    """Its table counts the forwards of the last rank from one."""
    table, _ = pipeline("1f1b", ranks, microbatches)
    other = of_torch("1f1b", ranks, microbatches, 1)
    assert table.ranks[:-1] == other.ranks[:-1]
    assert [s.kind for s in table[-1]] == [s.kind for s in other[-1]]


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 3), (2, 8), (4, 3), (4, 12), (8, 32)])
def test_torch_takes_as_long_for_zb_v_and_keeps_as_much(ranks: int, microbatches: int) -> None:
    """It has weight halves of the end in another order."""
    table, where = pipeline("zb-v", ranks, microbatches)
    other = of_torch("zb-v", ranks, microbatches, 2)
    assert facts(table, where) == facts(other, where)
    assert [sorted(map(str, s)) for s in table] == [sorted(map(str, s)) for s in other]
