"""What calls save for their backward on the host's memory meanwhile: it leaves behind the forward, and sets out for the
device while the action before the backward runs (arXiv:1602.08124).

What is saved first waits longest: the first calls of a rank go, as many as make up the share that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specc.compiler.schedule.actions import PARTS, Action
from specc.compiler.schedule.lifetimes import recomputed_later

ROOM = 3  # actions that compute from a forward on to its backward: one to leave beside, one to come back beside


def offloaded(actions: Sequence[Action], saved: Callable[[int], int], share: float) -> list[Action]:
    """The actions of a rank with OFFLOAD and FETCH; `saved` are bytes that a call saves."""
    again = recomputed_later(actions)
    spans = _spans(actions, again)
    keeps = [a.call for a in actions if a.kind == "F" and (a.call, a.microbatch) not in again]
    wanted = share * sum(map(saved, keeps))
    which: set[int] = set()
    moved = 0.0
    for call in dict.fromkeys(call for call, _ in spans):
        if moved >= wanted:
            break
        which.add(call)
        moved += saved(call) * sum(c == call for c, _ in spans)
    behind = {begin: Action("OFFLOAD", *key) for key, (begin, _) in spans.items() if key[0] in which}
    before = {end: Action("FETCH", *key) for key, (_, end) in spans.items() if key[0] in which}
    done: list[Action] = []
    for i, a in enumerate(actions):
        done += [x for x in (before.get(i), a, behind.get(i)) if x is not None]
    return done


def _spans(actions: Sequence[Action], again: set[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Of each call and microbatch that keeps something long enough: the place of its forward, and that of the action
    that computes right before its backward. Those that run forward `again` keep nothing."""
    computing = [i for i, a in enumerate(actions) if a.kind in PARTS]
    forwards: dict[tuple[int, int], int] = {}
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for n, i in enumerate(computing):
        a = actions[i]
        key = a.call, a.microbatch
        if a.kind == "F" and key not in again:
            forwards[key] = n
        elif a.kind in ("B", "I") and key in forwards and n - forwards[key] >= ROOM:
            found[key] = computing[forwards[key]], computing[n - 1]
    return dict(sorted(found.items(), key=lambda item: item[1]))
