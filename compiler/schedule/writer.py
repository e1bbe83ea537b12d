"""Writes the slots of a rank, phase by phase."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from specc.compiler.schedule.slots import KINDS, Slot, SlotKind


@dataclass
class Writer:
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
