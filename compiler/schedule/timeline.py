"""When the actions of each rank begin: ranks wait where a call takes what another rank has not sent yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from specc.compiler.program import Call
from specc.compiler.schedule.actions import GRADIENT, Action

Key = tuple[str, int, int, int]  # a value or gradient, its microbatch, the rank that sends it, the one that takes it


class Stuck(Exception):
    """No rank can go on; `rank` waits at `action`."""

    def __init__(self, rank: int, action: Action) -> None:
        super().__init__(f"rank {rank} waits for ever at {action}: nobody sends what it takes")
        self.rank, self.action = rank, action


def starts(
    schedules: Sequence[Sequence[Action]], calls: Sequence[Call], seconds: Callable[[Action], float]
) -> list[list[float]]:  # fmt: skip
    """The begin of each action, messages taking no time. Raises Stuck if the orders of the ranks do not fit."""
    waits = [awaited(rank, actions, calls) for rank, actions in enumerate(schedules)]
    found: list[list[float]] = [[] for _ in schedules]
    clocks = [0.0] * len(schedules)
    sent: dict[Key, float] = {}
    goes_on = True
    while goes_on:
        goes_on = False
        for rank, actions in enumerate(schedules):
            for i in range(len(found[rank]), len(actions)):
                keys = waits[rank].get(i, [])
                if any(key not in sent for key in keys):
                    break
                a, goes_on = actions[i], True
                found[rank].append(max([clocks[rank], *(sent[key] for key in keys)]))
                clocks[rank] = found[rank][-1] + seconds(a)
                if a.kind == "SEND":
                    sent[a.value, a.microbatch, rank, a.peer] = clocks[rank]
    for rank, actions in enumerate(schedules):
        if len(found[rank]) < len(actions):
            raise Stuck(rank, actions[len(found[rank])])
    return found


def awaited(rank: int, actions: Sequence[Action], calls: Sequence[Call]) -> Mapping[int, list[Key]]:
    """For each action that is the first to read something received, the messages that it waits for."""
    coming: dict[tuple[str, int], list[Key]] = {}
    found: dict[int, list[Key]] = {}
    for i, a in enumerate(actions):
        if a.kind == "RECV":
            coming.setdefault((a.value, a.microbatch), []).append((a.value, a.microbatch, a.peer, rank))
        keys = [key for name in read(a, calls) for key in coming.pop((name, a.microbatch), [])]
        if keys:
            found[i] = keys
    return found


def read(a: Action, calls: Sequence[Call]) -> Iterator[str]:
    """The values that an action takes, and the gradients, by the names that messages have."""
    if a.kind == "F":
        yield from (f"%{v}" for v in calls[a.call].ins)
    elif a.kind in ("B", "I"):
        yield from (f"{GRADIENT}{v}" for v in calls[a.call].outs)
