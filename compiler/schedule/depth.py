"""How far a rank of a pipeline is in a step, as a number that can be compared with those of other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specc.compiler.program import Call
from specc.compiler.schedule.actions import GRADIENT, Action

At = tuple[int, int]  # a rank, and the place of one of its actions


def depths(schedules: Sequence[Sequence[Action]], calls: Sequence[Call]) -> list[list[int]]:
    """For each action of each rank the longest chain of actions that come before it.

    What waits for another rank is deeper than all that this rank may be at: of ranks that stand still, the one with the
    least depth holds up the others."""
    found: list[list[int]] = [[] for _ in schedules]
    waits = [_waits(schedules, rank, calls) for rank in range(len(schedules))]
    todo, moved = set(range(len(schedules))), True
    while todo:
        assert moved, "the orders of the ranks do not fit"
        moved = False
        for rank in sorted(todo):
            while len(found[rank]) < len(schedules[rank]):
                i = len(found[rank])
                before = waits[rank].get(i, [])
                if any(len(found[r]) <= place for r, place in before):
                    break
                own = found[rank][-1] if i else -1
                found[rank].append(1 + max([own, *(found[r][place] for r, place in before)]))
                moved = True
            if len(found[rank]) == len(schedules[rank]):
                todo.discard(rank)
    return found


def _waits(schedules: Sequence[Sequence[Action]], rank: int, calls: Sequence[Call]) -> Mapping[int, list[At]]:
    """The actions of other ranks that each action of a rank waits for."""
    sends = {
        (r, a.peer, a.microbatch, a.value): i
        for r, actions in enumerate(schedules) for i, a in enumerate(actions) if a.kind == "SEND"
    }  # fmt: skip
    found: dict[int, list[At]] = {}
    coming: dict[tuple[int, str], list[int]] = {}
    for i, a in enumerate(schedules[rank]):
        if a.kind == "RECV":
            coming.setdefault((a.microbatch, a.value), []).append(a.peer)
        elif a.kind == "SHARE":
            found[i] = _sharing(schedules, rank, a)
        elif taken := _takes(a, calls):
            found[i] = [
                (peer, sends[peer, rank, a.microbatch, value])
                for value in taken for peer in coming.pop((a.microbatch, value), [])
            ]  # fmt: skip
    return found


def _takes(a: Action, calls: Sequence[Call]) -> list[str]:
    if a.kind == "F":
        return [f"%{v}" for v in calls[a.call].ins]
    return [f"{GRADIENT}{v}" for v in calls[a.call].outs] if a.kind in ("B", "I") else []


def _sharing(schedules: Sequence[Sequence[Action]], rank: int, a: Action) -> list[At]:
    """What the other ranks do before they share: a rank in between sends its part at once."""
    places = [(r, list(each).index(a)) for r, each in enumerate(schedules) if r != rank and a in each]
    return [(r, i - 1) for r, i in places]
