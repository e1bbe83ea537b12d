"""The schedule: what a rank does in one step, as a list of actions in order.

`F` runs a call forward, `B` backward (`I` and `W` are its input and weight halves), `RECOMPUTE` runs it forward again
for what its backward reads, `UNSHARD` begins to make the parameters that a call's graphs compute with, `REDUCE` begins
to bring its gradients together, `STEP` runs the optimizer. Parameters of a call go after their last use before they are
made again; gradients of a call arrive when those of the next one have set out, the last ones before `SHARE` and `STEP`.
`OFFLOAD` begins to move what a call saved to the host's memory, `FETCH` to bring it back. In a pipeline, `SEND` and
`RECV` begin to move a value (`%v2`) or its gradient (`d%v2`) between ranks, and `SHARE` adds up the gradient of what
several ranks have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from specc.compiler.program import Call

Kind = Literal["UNSHARD", "F", "RECOMPUTE", "B", "I", "W", "REDUCE", "OFFLOAD", "FETCH", "SEND", "RECV", "SHARE",
               "STEP"]  # fmt: skip

KINDS: tuple[Kind, ...] = get_args(Kind)
PARTS: dict[Kind, str] = {"F": "fwd", "RECOMPUTE": "fwd", "B": "bwd", "I": "bwd_input", "W": "bwd_weight"}
CARRY: dict[Kind, tuple[str, ...]] = {
    "UNSHARD": ("unshard_start", "unshard_finish"),
    "REDUCE": ("reduce_start", "reduce_finish"),
}
READS: tuple[Kind, ...] = ("F", "RECOMPUTE", "B", "I")  # the actions whose graphs take a call's parameters
GRADIENT = "d%"


@dataclass(frozen=True)
class Action:
    """One action; `call` is an index into the program's calls, -1 where the action is of all of them.

    `peer` is the rank of the pipeline at the other end, `value` what is moved or shared."""

    kind: Kind
    call: int = -1
    microbatch: int = -1
    peer: int = -1
    value: str = ""

    def __str__(self) -> str:
        numbers = {"c": self.call, "m": self.microbatch, "r": self.peer}
        parts = [self.kind, *(f"{letter}{n}" for letter, n in numbers.items() if n >= 0), self.value]
        return " ".join(parts).rstrip()

    @property
    def is_gradient(self) -> bool:
        return self.value.startswith(GRADIENT)

    @property
    def name(self) -> str:
        """The value that is moved, or whose gradient is."""
        return self.value.partition("%")[2]


def parse(text: str) -> list[Action]:
    """The actions of a text that has one a line."""
    return [_action(line.split()) for line in text.splitlines() if line.strip()]


def parts_of(actions: Iterable[Action]) -> set[str]:
    """The graphs of a body (see compiler.graphs.Graphs) that these actions run."""
    kinds = {a.kind for a in actions}
    return {PARTS[k] for k in kinds if k in PARTS} | {part for k in kinds for part in CARRY.get(k, ())}


def graph_calls(actions: Iterable[Action], calls: Sequence[Call]) -> Counter[tuple[str, str]]:
    """How often these actions run each graph, by its body and part."""
    return Counter((calls[a.call].body, PARTS[a.kind]) for a in actions if a.kind in PARTS)


def _action(words: list[str]) -> Action:
    kinds: dict[str, Kind] = {k: k for k in KINDS}
    kind = kinds[words[0]]
    value = words.pop() if kind in ("SEND", "RECV", "SHARE") else ""
    numbers = {w[0]: int(w[1:]) for w in words[1:]}
    return Action(kind, numbers.get("c", -1), numbers.get("m", -1), numbers.get("r", -1), value)


def one_rank(n_calls: int, n_microbatches: int, backward: set[int]) -> list[Action]:
    """One process, one pipeline stage: forward and backward of a microbatch after the other, then the step."""
    return [Action("UNSHARD"), *_in_turn(n_calls, n_microbatches, backward), Action("REDUCE"), Action("STEP")]


def one_of_mesh(
    n_calls: int, n_microbatches: int, backward: set[int], gather_each_use: bool, reduce_each_microbatch: bool
) -> list[Action]:  # fmt: skip
    """A rank of a mesh without pipeline stages."""
    uses = _in_turn(n_calls, n_microbatches, backward)
    return [*carried(uses, gather_each_use, reduce_each_microbatch), Action("STEP")]


def _in_turn(n_calls: int, n_microbatches: int, backward: set[int]) -> list[Action]:
    return [
        a for m in range(n_microbatches)
        for a in [*(Action("F", c, m) for c in range(n_calls)),
                  *(Action("B", c, m) for c in reversed(range(n_calls)) if c in backward)]
    ]  # fmt: skip


def carried(uses: Sequence[Action], gather_each_use: bool, reduce_each_microbatch: bool) -> list[Action]:
    """The actions with those on parameters kept in parts. Parameters come once a step, or for each use while the one
    before runs; gradients are brought together after each microbatch, or after the last."""
    calls = list(dict.fromkeys(a.call for a in uses if a.kind in READS))
    last = {a.call: i for i, a in enumerate(uses) if a.kind in ("B", "W")}
    later = _later(uses)
    actions = [Action("UNSHARD", c) for c in (calls[:1] if gather_each_use else calls)]
    for i, a in enumerate(uses):
        if gather_each_use and later[i] not in (-1, a.call):
            actions.append(Action("UNSHARD", later[i]))
        actions.append(a)
        if a.kind in ("B", "W") and (reduce_each_microbatch or last[a.call] == i):
            actions.append(Action("REDUCE", a.call, a.microbatch))
    return actions


def _later(uses: Sequence[Action]) -> list[int]:
    """For each action that reads parameters the call whose parameters are read next; -1: none, or no such action."""
    found, following = [-1] * len(uses), -1
    for i in reversed(range(len(uses))):
        if uses[i].kind in READS:
            found[i], following = following, uses[i].call
    return found
