"""Random pipelines are free of deadlocks and free what they keep; a table with a mistake is always refused."""

from __future__ import annotations

import itertools
import random

import pytest

from specc.compiler.schedule.chart import draw
from specc.compiler.schedule.schedules import SCHEDULES, pipeline
from specc.compiler.schedule.simulate import BadSchedule, done, needs, simulate
from specc.compiler.schedule.slots import Slot, Table, Where, parse_table

Costs = dict[tuple[str, int], float]


def drawn(rng: random.Random) -> tuple[Table, Where]:
    """A schedule with numbers that fit it."""
    name, ranks = rng.choice(list(SCHEDULES)), rng.randint(1, 6)
    row = SCHEDULES[name]
    microbatches = row.fill * ranks + rng.randint(0, 8) or 1
    microbatches = ranks * rng.randint(1, 3) if row.rounds else microbatches
    return pipeline(name, ranks, microbatches, rng.randint(row.least, min(row.most, 4)))


def swapped(table: Table, rank: int, i: int, j: int) -> Table:
    slots = list(table[rank])
    slots[i], slots[j] = slots[j], slots[i]
    return with_rank(table, rank, slots)


def with_rank(table: Table, rank: int, slots: list[Slot]) -> Table:
    return Table((*table.ranks[:rank], tuple(slots), *table.ranks[rank + 1 :]))


@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_end_and_free_what_they_keep(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        table, where = drawn(rng)
        costs = {(k, s): rng.uniform(0.1, 3.0) for k in "FBIW" for s in range(len(where))}
        delay = rng.choice([0.0, rng.uniform(0.0, 2.0)])
        made = simulate(table, where, lambda s, c=costs: c[s.kind, s.stage], lambda a, b, d=delay: d)  # type: ignore[misc]
        ends = {done(x.slot): x.end for spans in made.ranks for x in spans}
        for spans in made.ranks:
            assert all(a.end <= b.start for a, b in itertools.pairwise(spans))
            for x in spans:
                before = needs(x.slot, len(where))
                assert before is None or ends[before] <= x.start
        keeps = {(s.stage, s.microbatch) for slots in table for s in slots if s.kind == "F"}
        frees = [(s.stage, s.microbatch) for slots in table for s in slots if s.kind in "BW"]
        assert len(frees) == len(keeps)
        assert set(frees) == keeps
        assert parse_table(str(table)) == table


@pytest.mark.parametrize("seed", range(4))
def test_a_dropped_or_doubled_slot_is_caught(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(100):
        table, where = drawn(rng)
        rank = rng.randrange(len(table))
        slots = list(table[rank])
        at, to = rng.randrange(len(slots)), rng.randrange(len(slots))
        dropped, doubled = slots[:at] + slots[at + 1 :], [*slots[:to], slots[at], *slots[to:]]
        for wrong in (dropped, doubled):
            with pytest.raises(BadSchedule) as e:
                simulate(with_rank(table, rank, wrong), where, lambda slot: 1.0)
            assert e.value.rank == rank


@pytest.mark.parametrize("seed", range(4))
def test_a_swapped_pair_that_depends_is_caught(seed: int) -> None:
    rng = random.Random(seed)
    caught = 0
    for _ in range(100):
        table, where = drawn(rng)
        rank = rng.randrange(len(table))
        places: dict[tuple[str, int, int], int] = {
            (s.kind, s.stage, s.microbatch): i for i, s in enumerate(table[rank])
        }
        for (kind, stage, m), i in places.items():
            before = {"B": "F", "I": "F", "W": "I"}.get(kind)
            if before:
                with pytest.raises(BadSchedule):
                    simulate(swapped(table, rank, places[before, stage, m], i), where, lambda slot: 1.0)
                caught += 1
    assert caught > 500


def refusal(text: str, where: Where) -> str:
    with pytest.raises(BadSchedule) as e:
        simulate(parse_table(text), where, lambda slot: 1.0)
    return str(e.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("F0.0 F0.1 B0.0", "rank 0: F0.1 never frees its activation"),
        ("F0.0 I0.0", "rank 0: F0.0 has no W"),
        ("F0.0 B0.0 B0.1", "rank 0: B0.1 comes before its F"),
        ("F0.0 W0.0 I0.0", "rank 0: W0.0 comes before its I"),
        ("F0.0 B0.0 B0.0", "rank 0: B0.0 frees its activation again"),
        ("F0.0 F0.0 B0.0", "rank 0: F0.0 is there twice"),
        ("F0.1 B0.1", "rank 0: F0.0 is missing"),
        ("F1.0 B1.0", "rank 0: F1.0 is of a stage of another rank"),
    ],
)
def test_a_refusal_names_the_rank_and_the_slot(text: str, why: str) -> None:
    assert refusal(text, (0,)) == why


def test_a_deadlock_of_two_ranks_is_named() -> None:
    text = "F0.0 B0.0 F0.1 B0.1\nF1.0 F1.1 B1.0 B1.1"
    assert refusal(text, (0, 1)) == "rank 0: B0.0 waits for ever: the orders of the ranks do not fit"


def test_a_transfer_runs_beside_the_work() -> None:
    table, where = pipeline("gpipe", 2, 2)
    made = simulate(table, where, lambda slot: 1.0, lambda source, target: 0.5)
    assert [(str(x.slot), x.start) for x in made.ranks[1]] == [
        ("F1.0", 1.5),
        ("F1.1", 2.5),
        ("B1.0", 3.5),
        ("B1.1", 4.5),
    ]
    assert made.seconds == 7.0
    assert made.bubble(0) == pytest.approx(3 / 7)


def test_a_chart_shows_what_stands_idle() -> None:
    table, where = pipeline("1f1b", 2, 2)
    made = simulate(table, where, lambda slot: {"F": 1.0, "B": 2.0}[slot.kind])
    assert draw(made, 27) == " 0 F0-F1-......B0----...B1----\n 1 ...F0-B0----F1-B1----......\n"
