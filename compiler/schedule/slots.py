"""What a pipeline's ranks compute, in order: a table of slots, and where the stages of the model sit.

`F` is a stage's forward of a microbatch, `B` its backward; `I` and `W` are the input and weight halves of `B`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
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
