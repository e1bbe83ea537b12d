"""When the actions of each rank of a pipeline begin, and how far in a step they are: a rank waits where a call takes
what another one has not sent yet, and where several add up a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from specc.compiler.program import Call
from specc.compiler.schedule.actions import GRADIENT, Action

At = tuple[int, int]  # a rank, and the place of one of its actions
Sends = Mapping[tuple[int, int, int, str], int]  # by rank, peer, microbatch and value: the place of the SEND
NEVER = -1


class Stuck(Exception):
    """No rank can go on; `rank` waits at `action`."""

    def __init__(self, rank: int, action: Action) -> None:
        super().__init__(f"rank {rank} waits for ever at {action}: nobody sends what it takes")
        self.rank, self.action = rank, action


def depths(schedules: Sequence[Sequence[Action]], calls: Sequence[Call]) -> list[list[int]]:
    """For each action of each rank the longest chain of actions that come before it.

    What waits for another rank is deeper than all that this rank may be at: of ranks that stand still, the one with the
    least depth holds up the others."""
    return [[int(begin) for begin in each] for each in starts(schedules, calls, lambda action: 1.0)]


def starts(
    schedules: Sequence[Sequence[Action]], calls: Sequence[Call], seconds: Callable[[Action], float]
) -> list[list[float]]:  # fmt: skip
    """The begin of each action, messages taking no time. Raises Stuck if the orders of the ranks do not fit."""
    sends = {
        (r, a.peer, a.microbatch, a.value): i
        for r, actions in enumerate(schedules) for i, a in enumerate(actions) if a.kind == "SEND"
    }  # fmt: skip
    waits = [_waits(schedules, rank, calls, sends) for rank in range(len(schedules))]
    found: list[list[float]] = [[] for _ in schedules]
    ends: list[list[float]] = [[] for _ in schedules]
    goes_on = True
    while goes_on:
        goes_on = False
        for rank, actions in enumerate(schedules):
            for i in range(len(found[rank]), len(actions)):
                before = waits[rank].get(i, [])
                if any(place == NEVER or len(ends[r]) <= place for r, place in before):
                    break
                found[rank].append(max([ends[rank][-1] if i else 0.0, *(ends[r][place] for r, place in before)]))
                ends[rank].append(found[rank][-1] + seconds(actions[i]))
                goes_on = True
    for rank, actions in enumerate(schedules):
        if len(found[rank]) < len(actions):
            raise Stuck(rank, actions[len(found[rank])])
    return found


def _waits(
    schedules: Sequence[Sequence[Action]], rank: int, calls: Sequence[Call], sends: Sends
) -> Mapping[int, list[At]]:  # fmt: skip
    """The actions of other ranks that each action of a rank waits for."""
    found: dict[int, list[At]] = {}
    coming: dict[tuple[int, str], list[int]] = {}
    for i, a in enumerate(schedules[rank]):
        if a.kind == "RECV":
            coming.setdefault((a.microbatch, a.value), []).append(a.peer)
        elif a.kind == "SHARE":
            found[i] = _sharing(schedules, rank, a)
        elif taken := _takes(a, calls):
            found[i] = [
                (peer, sends.get((peer, rank, a.microbatch, value), NEVER))
                for value in taken for peer in coming.pop((a.microbatch, value), [])
            ]  # fmt: skip
    return found


def _takes(a: Action, calls: Sequence[Call]) -> list[str]:
    """The values that an action takes, and the gradients, by the names that messages have."""
    if a.kind == "F":
        return [f"%{v}" for v in calls[a.call].ins]
    return [f"{GRADIENT}{v}" for v in calls[a.call].outs] if a.kind in ("B", "I") else []


def _sharing(schedules: Sequence[Sequence[Action]], rank: int, a: Action) -> list[At]:
    """What the other ranks do before they share: a rank in between sends its part at once."""
    places = [(r, list(each).index(a)) for r, each in enumerate(schedules) if r != rank and a in each]
    return [(r, i - 1) for r, i in places]
