"""Recomputation: calls that keep nothing for their backward, and run forward again right before it.

A call that keeps nothing holds its operands instead, which the call before it has made anyway (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from specc.compiler.graphs import Graphs
from specc.compiler.program import Call
from specc.compiler.schedule.actions import Action
from specc.compiler.work import graph_work

Recompute = Literal["auto", "none", "full"]


def recomputed(actions: Sequence[Action], which: Collection[int]) -> list[Action]:
    """The actions with a RECOMPUTE before the backward of these calls, but for one that follows its forward at once."""
    done: list[Action] = []
    last: Action | None = None  # the last action that computes
    for a in actions:
        follows = last is not None and last.kind == "F" and (last.call, last.microbatch) == (a.call, a.microbatch)
        if a.kind in ("B", "I") and a.call in which and not follows:
            done.append(Action("RECOMPUTE", a.call, a.microbatch))
        done.append(a)
        if a.kind in ("F", "B", "I", "W"):
            last = a
    return done


def choose(
    kind: Recompute, calls: Sequence[Call], graphs: Mapping[str, Graphs], limit: float,
    peak: Callable[[frozenset[int]], int],
) -> frozenset[int]:  # fmt: skip
    """The calls to run again. `auto`: the fewest that bring the peak, in bytes, below the limit; those that give most
    memory for their work go first. If none do, all that can."""
    if kind == "none":
        return frozenset()
    worth = gains(graphs)
    able = [c for c, call in enumerate(calls) if worth[call.body] > 0]
    ranked = sorted(able, key=lambda c: -worth[calls[c].body])
    if kind == "full":
        return frozenset(ranked)
    few, many = 0, len(ranked)
    while few < many:
        middle = (few + many) // 2
        if peak(frozenset(ranked[:middle])) <= limit:
            many = middle
        else:
            few = middle + 1
    return frozenset(ranked[:many])


def gains(graphs: Mapping[str, Graphs]) -> dict[str, float]:
    """Bytes of a body's own that wait for the backward, for each FLOP of running it again."""
    return {n: g.saved_bytes / max(1.0, graph_work(g.fwd).flops) if g.bwd else 0.0 for n, g in graphs.items()}
