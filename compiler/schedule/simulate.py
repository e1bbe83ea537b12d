"""Run a table of slots on paper: when each slot begins and ends, what stands idle, and what is alive at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specc.compiler.schedule.slots import Slot, Table, Where

# What a slot makes of a stage's state on a microbatch. What is not here may not happen, and REFUSED says why.
NEXT: Mapping[tuple[str, str], str] = {
    ("", "F"): "alive", ("alive", "B"): "freed", ("alive", "I"): "half", ("half", "W"): "freed",
}  # fmt: skip
REFUSED: Mapping[tuple[str, str], str] = {
    ("", "B"): "comes before its F", ("", "I"): "comes before its F", ("", "W"): "comes before its I",
    ("alive", "F"): "is there twice", ("alive", "W"): "comes before its I", ("half", "F"): "is there twice",
    ("half", "I"): "is there twice", ("half", "B"): "comes beside an I", ("freed", "F"): "is there twice",
    ("freed", "B"): "frees its activation again", ("freed", "I"): "comes after its activation was freed",
    ("freed", "W"): "frees its activation again",
}  # fmt: skip
LEFT: Mapping[str, str] = {"": "is missing", "alive": "never frees its activation", "half": "has no W"}


class BadSchedule(Exception):
    """A table that cannot be run; `rank` and `slot` say where."""

    def __init__(self, rank: int, slot: Slot, why: str) -> None:
        super().__init__(f"rank {rank}: {slot} {why}")
        self.rank, self.slot, self.why = rank, slot, why


@dataclass(frozen=True)
class Span:
    start: float
    end: float
    slot: Slot


@dataclass(frozen=True)
class Timeline:
    """The spans of each rank. `live` says of each (rank, stage) how many microbatches have activations there at once at
    most, `live_of_rank` how many all stages of a rank have: from the begin of a forward to the end of its backward."""

    ranks: tuple[tuple[Span, ...], ...]
    seconds: float
    live: Mapping[tuple[int, int], int]
    live_of_rank: tuple[int, ...]

    def bubble(self, rank: int) -> float:
        """The share of the whole time in which the rank stands idle."""
        busy = sum(span.end - span.start for span in self.ranks[rank])
        return 1 - busy / self.seconds if self.seconds else 0.0

    def span(self, rank: int) -> float:
        """Seconds from the rank's first slot to the end of its last: a step takes no longer where steps overlap."""
        spans = self.ranks[rank]
        return spans[-1].end - spans[0].start if spans else 0.0


def simulate(
    table: Table, where: Where, seconds: Callable[[Slot], float],
    transfer: Callable[[int, int], float] = lambda source, target: 0.0,
) -> Timeline:  # fmt: skip
    """The timeline of a table. Raises BadSchedule if it does not compute every stage on every microbatch once, in an
    order that ends. `transfer(source, target)` are seconds from a rank to another, beside the work of both."""
    check(table, where)
    spans: list[list[Span]] = [[] for _ in table]
    ends: dict[Slot, float] = {}
    waiting: dict[Slot, int] = {}  # the rank that a slot holds up
    todo = list(range(len(table)))
    while todo:
        rank = todo.pop()
        for slot in table[rank][len(spans[rank]) :]:
            before, start = needs(slot, len(where)), spans[rank][-1].end if spans[rank] else 0.0
            if before is not None:
                if before not in ends:
                    waiting[before] = rank
                    break
                source = where[before.stage]
                start = max(start, ends[before] + (transfer(source, rank) if source != rank else 0.0))
            spans[rank].append(Span(start, start + seconds(slot), slot))
            ends[done(slot)] = spans[rank][-1].end
            todo += [waiting.pop(done(slot))] if done(slot) in waiting else []
    if waiting:
        rank = min(waiting.values())
        raise BadSchedule(rank, table[rank][len(spans[rank])], "waits for ever: the orders of the ranks do not fit")
    live = [_live(slots) for slots in table]
    return Timeline(
        tuple(map(tuple, spans)), max((s[-1].end for s in spans if s), default=0.0),
        {(r, s): n for r, (each, _) in enumerate(live) for s, n in each.items()}, tuple(most for _, most in live),
    )  # fmt: skip


def needs(slot: Slot, n_stages: int) -> Slot | None:
    """What a slot needs of another stage: the forward before it, or the backward behind it (named as `B`)."""
    if slot.kind == "F":
        return Slot("F", slot.stage - 1, slot.microbatch) if slot.stage else None
    if slot.kind == "W" or slot.stage + 1 == n_stages:
        return None
    return Slot("B", slot.stage + 1, slot.microbatch)


def done(slot: Slot) -> Slot:
    """What others know a slot as: the input half gives what the whole backward gives."""
    return Slot("B", slot.stage, slot.microbatch) if slot.kind == "I" else slot


def check(table: Table, where: Where) -> None:
    """Raise BadSchedule unless each rank has the slots of its stages once, and each after those of its own that it
    needs."""
    n = 1 + max((s.microbatch for slots in table for s in slots), default=-1)
    for rank, slots in enumerate(table):
        state: dict[tuple[int, int], str] = {(s, m): "" for s, r in enumerate(where) if r == rank for m in range(n)}
        for slot in slots:
            key = (slot.stage, slot.microbatch)
            if key not in state:
                raise BadSchedule(rank, slot, "is of a stage of another rank")
            if (state[key], slot.kind) not in NEXT:
                raise BadSchedule(rank, slot, REFUSED[state[key], slot.kind])
            state[key] = NEXT[state[key], slot.kind]
        for (stage, m), left in state.items():
            if left != "freed":
                raise BadSchedule(rank, Slot("F", stage, m), LEFT[left])


def _live(slots: tuple[Slot, ...]) -> tuple[dict[int, int], int]:
    """The most activations alive at once on a rank, by stage and of all stages."""
    alive, most, most_of_all = Counter[int](), dict[int, int](), 0
    for slot in slots:
        if slot.kind == "F":
            alive[slot.stage] += 1
        most[slot.stage] = max(most.get(slot.stage, 0), alive[slot.stage])
        most_of_all = max(most_of_all, alive.total())
        if slot.kind in ("B", "W"):
            alive[slot.stage] -= 1
    return most, most_of_all
