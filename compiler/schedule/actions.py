"""The schedule: what a rank does in one step, as a list of actions in order.

`F` runs a call forward, `B` backward (`I` and `W` are its input and weight halves), `UNSHARD` makes the parameters
that the graphs compute with, `REDUCE` brings the gradients together, `STEP` runs the optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["UNSHARD", "F", "B", "I", "W", "REDUCE", "STEP"]

KINDS: tuple[Kind, ...] = get_args(Kind)
PARTS: dict[Kind, str] = {"F": "fwd", "B": "bwd", "I": "bwd_input", "W": "bwd_weight"}


@dataclass(frozen=True)
class Action:
    """One action; `call` is an index into the program's calls, -1 where the action is of all of them."""

    kind: Kind
    call: int = -1
    microbatch: int = -1

    def __str__(self) -> str:
        parts: list[str] = [self.kind]
        if self.call >= 0:
            parts.append(f"c{self.call}")
        if self.microbatch >= 0:
            parts.append(f"m{self.microbatch}")
        return " ".join(parts)


def parse(text: str) -> list[Action]:
    """The actions of a text that has one a line."""
    return [_action(line.split()) for line in text.splitlines() if line.strip()]


def parts_of(actions: Iterable[Action]) -> set[str]:
    """The graphs of a body (see compiler.graphs.Graphs) that these actions run."""
    return {PARTS[a.kind] for a in actions if a.kind in PARTS}


def _action(words: list[str]) -> Action:
    kinds: dict[str, Kind] = {k: k for k in KINDS}
    numbers = {w[0]: int(w[1:]) for w in words[1:]}
    return Action(kinds[words[0]], numbers.get("c", -1), numbers.get("m", -1))


def one_rank(n_calls: int, n_microbatches: int, backward: set[int]) -> list[Action]:
    """One process, one pipeline stage: forward and backward of a microbatch after the other, then the step."""
    actions = [Action("UNSHARD")]
    for m in range(n_microbatches):
        actions += [Action("F", c, m) for c in range(n_calls)]
        actions += [Action("B", c, m) for c in reversed(range(n_calls)) if c in backward]
    return [*actions, Action("REDUCE"), Action("STEP")]
