"""From slots of stages to actions on calls: what each rank of a pipeline runs, sends and receives.

A value goes straight from the rank that makes it to each that takes it, once; its gradient comes back from each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from specc.compiler.graphs import Graphs
from specc.compiler.program import Call
from specc.compiler.schedule.actions import GRADIENT, Action
from specc.compiler.schedule.slots import Slot, Table, Where

BACKWARD = {"B", "I"}  # slots that take a gradient and give one


@dataclass(frozen=True)
class Stages:
    """The stage of each call, and the rank of each stage."""

    of_call: tuple[int, ...]
    where: Where

    def rank(self, call: int) -> int:
        return self.where[self.of_call[call]]

    def calls(self, rank: int) -> list[int]:
        """The calls of all stages of a rank."""
        return [c for c in range(len(self.of_call)) if self.rank(c) == rank]


@dataclass(frozen=True)
class Message:
    """A value that goes from a stage to another one with the forward, or a gradient with the backward."""

    way: Literal["forward", "backward"]
    value: str
    source: int
    target: int


def expand(
    table: Table, stages: Stages, calls: Sequence[Call], bodies: Mapping[str, Graphs]
) -> list[list[Action]]:  # fmt: skip
    """The actions of each rank. What a slot receives is awaited from before the slot ahead of it runs."""
    every = list(messages(stages, calls, bodies))
    return [_rank(slots, stages, calls, bodies, every) for slots in table]


def messages(stages: Stages, calls: Sequence[Call], bodies: Mapping[str, Graphs]) -> Iterator[Message]:
    """What goes between stages of different ranks, in the order of the calls that make it."""
    for c, call in enumerate(calls):
        source = stages.of_call[c]
        for value, flows in zip(call.outs, bodies[call.body].out_grads, strict=True):
            for target in _first_on_each_rank(_users(value, stages, calls, None), stages, source):
                yield Message("forward", f"%{value}", source, target)
            users = _users(value, stages, calls, bodies) if flows else []
            for target in _first_on_each_rank(users, stages, source):
                yield Message("backward", f"{GRADIENT}{value}", target, source)


def _users(
    value: str, stages: Stages, calls: Sequence[Call], bodies: Mapping[str, Graphs] | None
) -> list[int]:  # fmt: skip
    """The stages that take a value; with the graphs those that have a gradient of it."""
    return [
        stages.of_call[c] for c, call in enumerate(calls)
        if any(v == value and (bodies is None or bodies[call.body].in_grads[i]) for i, v in enumerate(call.ins))
    ]  # fmt: skip


def _first_on_each_rank(users: Sequence[int], stages: Stages, source: int) -> list[int]:
    """The first of these stages on each rank but that of the source: it receives the value, and is the last to add to
    the gradient."""
    first = {stages.where[s]: s for s in sorted(users, reverse=True)}
    return sorted(s for rank, s in first.items() if rank != stages.where[source])


def _rank(
    slots: Sequence[Slot], stages: Stages, calls: Sequence[Call], bodies: Mapping[str, Graphs],
    every: Sequence[Message],
) -> list[Action]:  # fmt: skip
    receives = [list(_receives(slot, every, stages)) for slot in slots]
    actions = receives[0]
    for slot, ahead in zip(slots, [*receives[1:], []], strict=True):
        actions += [*ahead, *_computes(slot, stages, calls, bodies), *_sends(slot, every, stages)]
    return actions


def _receives(slot: Slot, every: Sequence[Message], stages: Stages) -> Iterator[Action]:
    for m in every:
        if m.target == slot.stage and m.way == _way(slot):
            yield Action("RECV", microbatch=slot.microbatch, peer=stages.where[m.source], value=m.value)


def _sends(slot: Slot, every: Sequence[Message], stages: Stages) -> Iterator[Action]:
    for m in every:
        if m.source == slot.stage and m.way == _way(slot):
            yield Action("SEND", microbatch=slot.microbatch, peer=stages.where[m.target], value=m.value)


def _way(slot: Slot) -> str:
    return "forward" if slot.kind == "F" else "backward" if slot.kind in BACKWARD else ""


def _computes(slot: Slot, stages: Stages, calls: Sequence[Call], bodies: Mapping[str, Graphs]) -> Iterator[Action]:
    """The calls of the slot's stage, backwards in the last first; a call without a gradient has no backward."""
    own = [c for c, stage in enumerate(stages.of_call) if stage == slot.stage]
    for c in own if slot.kind == "F" else reversed(own):
        graphs = bodies[calls[c].body]
        there = {"F": graphs.fwd, "B": graphs.bwd, "I": graphs.bwd_input, "W": graphs.bwd_weight}
        if there[slot.kind] is not None:
            yield Action(slot.kind, c, slot.microbatch)
