"""The schedule: what a rank does in one step, as a list of actions in order.

`F` runs a call forward, `B` backward (`I` and `W` are its input and weight halves), `UNSHARD` begins to make the
parameters that a call's graphs compute with, `REDUCE` brings its gradients together, `STEP` runs the optimizer.
Parameters of a call go after their last use before they are made again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["UNSHARD", "F", "B", "I", "W", "REDUCE", "STEP"]

KINDS: tuple[Kind, ...] = get_args(Kind)
PARTS: dict[Kind, str] = {"F": "fwd", "B": "bwd", "I": "bwd_input", "W": "bwd_weight"}
CARRY: dict[Kind, tuple[str, ...]] = {"UNSHARD": ("unshard_start", "unshard_finish"), "REDUCE": ("reduce",)}


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
    kinds = {a.kind for a in actions}
    return {PARTS[k] for k in kinds if k in PARTS} | {part for k in kinds for part in CARRY.get(k, ())}


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


def one_of_mesh(
    n_calls: int, n_microbatches: int, backward: set[int], gather_each_use: bool, reduce_each_microbatch: bool
) -> list[Action]:  # fmt: skip
    """A rank of a mesh without pipeline stages. Parameters come once a step, or for each use while the one before
    runs; gradients are brought together after each microbatch, or after the last."""
    uses = [
        a for m in range(n_microbatches)
        for a in [*(Action("F", c, m) for c in range(n_calls)),
                  *(Action("B", c, m) for c in reversed(range(n_calls)) if c in backward)]
    ]  # fmt: skip
    last = n_microbatches - 1
    actions = [Action("UNSHARD", c) for c in range(1 if gather_each_use else n_calls)]
    for a, later in zip(uses, [*uses[1:], None], strict=True):
        if gather_each_use and later and later.call != a.call:
            actions.append(Action("UNSHARD", later.call))
        actions.append(a)
        if a.kind == "B" and (reduce_each_microbatch or a.microbatch == last):
            actions.append(Action("REDUCE", a.call, a.microbatch))
    return [*actions, Action("STEP")]
