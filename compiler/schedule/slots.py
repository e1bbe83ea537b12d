"""What a pipeline's ranks compute, in order: a table of slots, and where the stages of the model sit.

`F` is a stage's forward of a microbatch, `B` its backward; `I` and `W` are the input and weight halves of `B`."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

SlotKind = Literal["F", "B", "I", "W"]
Where = tuple[int, ...]  # the rank of each stage
KINDS: dict[str, SlotKind] = {k: k for k in get_args(SlotKind)}
SLOT = re.compile(r"([FBIW])(\d+)\.(\d+)")


@dataclass(frozen=True)
class Slot:
    """`F2.5` is the forward of stage 2 on microbatch 5."""

    kind: SlotKind
    stage: int
    microbatch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.microbatch}"


@dataclass(frozen=True)
class Table:
    """The slots of each rank in the order in which it runs them; its text is a line a rank."""

    ranks: tuple[tuple[Slot, ...], ...]

    def __len__(self) -> int:
        return len(self.ranks)

    def __iter__(self) -> Iterator[tuple[Slot, ...]]:
        return iter(self.ranks)

    def __getitem__(self, rank: int) -> tuple[Slot, ...]:
        return self.ranks[rank]

    def __str__(self) -> str:
        return "".join(" ".join(map(str, slots)) + "\n" for slots in self.ranks)


def parse_table(text: str) -> Table:
    """The table of a text. Raises ValueError for a word that is no slot."""
    return Table(tuple(tuple(map(slot_named, line.split())) for line in text.splitlines()))


def slot_named(word: str) -> Slot:
    found = SLOT.fullmatch(word)
    if not found:
        raise ValueError(f"'{word}' is not a slot")
    return Slot(KINDS[found[1]], int(found[2]), int(found[3]))


def loop(ranks: int, chunks: int) -> Where:
    """Stage after stage around the ranks."""
    return tuple(s % ranks for s in range(ranks * chunks))


def v(ranks: int, chunks: int) -> Where:
    """There and back again: with two chunks the first rank has the first stage and the last."""
    return tuple(s % ranks if s // ranks % 2 == 0 else ranks - 1 - s % ranks for s in range(ranks * chunks))


@dataclass
class Order:
    """A rank's slots while a schedule writes them: each stage takes its microbatches one after the other."""

    slots: list[Slot] = field(default_factory=list)
    late: deque[Slot] = field(default_factory=deque)  # input halves whose weight half is still to come
    done: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, kinds: str, *stages: int) -> None:
        """The next slot of each kind, on the stage at the same place. Weight halves are added by `weight`."""
        for kind, stage in zip(kinds, stages, strict=True):
            self._next(KINDS[kind], stage)

    def _next(self, kind: SlotKind, stage: int) -> None:
        key = ("F" if kind == "F" else "B", stage)
        made = Slot(kind, stage, self.done[key])
        self.done[key] += 1
        self.slots.append(made)
        if kind == "I":
            self.late.append(made)

    def weight(self, n: int = 1) -> None:
        """The weight halves of the `n` oldest input halves that wait for it, as far as there are so many."""
        for _ in range(min(n, len(self.late))):
            oldest = self.late.popleft()
            self.slots.append(Slot("W", oldest.stage, oldest.microbatch))

    def first(self, microbatches: int) -> tuple[Slot, ...]:
        """The slots of the first so many microbatches."""
        return tuple(s for s in self.slots if s.microbatch < microbatches)
