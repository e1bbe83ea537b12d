"""When values and parameters of a step may go: what its actions read last."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from specc.compiler.program import Call
from specc.compiler.schedule.actions import READS, Action


class Flows(Protocol):
    """Which operands and outs of a body have gradients."""

    @property
    def in_grads(self) -> tuple[bool, ...]: ...
    @property
    def out_grads(self) -> tuple[bool, ...]: ...


def idle_outs(calls: Sequence[Call], bodies: Mapping[str, Flows], loss: str | None) -> set[str]:
    """Values with a gradient that no later call gives: outputs beside the loss, say."""
    pairs = [(c, bodies[c.body]) for c in calls]
    fed = {v for c, b in pairs for v, flows in zip(c.ins, b.in_grads, strict=True) if flows}
    outs = {v for c, b in pairs for v, flows in zip(c.outs, b.out_grads, strict=True) if flows}
    return outs - fed - {loss or ""}


def last_uses(actions: Sequence[Action], calls: Sequence[Call], kept: Collection[str]) -> list[list[tuple[int, str]]]:
    """For each action the values, with their microbatch, that no later action reads: forward passes take or send them.

    What is `kept` stays to the end."""
    last: dict[tuple[int, str], int] = {}
    for i, a in enumerate(actions):
        if a.kind in ("F", "RECOMPUTE"):
            call = calls[a.call]
            outs = call.outs if a.kind == "F" else ()
            last |= {(a.microbatch, v): i for v in (*call.ins, *outs) if v not in kept}
        elif a.kind == "SEND" and not a.is_gradient:
            last[a.microbatch, a.name] = i
    dead: list[list[tuple[int, str]]] = [[] for _ in actions]
    for key, i in last.items():
        dead[i].append(key)
    return dead


def frees(actions: Sequence[Action]) -> list[int]:
    """For each action the call whose parameters go after it (-1: none): they come again, or are not used again."""
    found = [-1] * len(actions)
    later: set[int] = set()  # calls whose parameters are read before they come again
    for i in reversed(range(len(actions))):
        a = actions[i]
        if a.kind in READS:
            if a.call not in later:
                found[i] = a.call
            later.add(a.call)
        elif a.kind == "UNSHARD":
            later.discard(a.call)
    return found


def recomputed_later(actions: Sequence[Action]) -> set[tuple[int, int]]:
    """Calls and microbatches whose forward keeps nothing for the backward."""
    return {(a.call, a.microbatch) for a in actions if a.kind == "RECOMPUTE"}
