"""Saved values in the memory of the host, from behind a forward to its backward."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Saved = Sequence[Tensor | None]


@dataclass(frozen=True)
class View:
    """How a value lies in a memory, which is named by the address that it had."""

    at: int
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def of(self, memory: Tensor) -> Tensor:
        made = torch.empty(0, dtype=self.dtype, device=memory.device)
        return made.set_(memory.untyped_storage(), self.offset, self.shape, self.stride)


@dataclass(frozen=True)
class Away:
    """Saved values: those that stay, and the views of those whose memories are on the host."""

    saved: list[Tensor | View | None]
    memories: dict[int, Tensor]


@dataclass(frozen=True)
class Coming:
    """Values on their way back; `here` is when they have come."""

    saved: list[Tensor | None]
    here: torch.cuda.Event | None


class Lane:
    """Copies between a device and its host, beside what computes; on a CPU they are done at once.

    Memory of the device is taken and given back where the computing stands, so that no other stream holds it up."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def room(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can copy to."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.stream is not None)

    def copy(self, into: Tensor, of: Tensor) -> torch.cuda.Event | None:
        """Begin; the event is when it is done. Both are to be kept until then."""
        if self.stream is None:
            into.copy_(of)
            return None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            into.copy_(of, non_blocking=True)
            done: torch.cuda.Event = self.stream.record_event()
            return done

    def settle(self, done: torch.cuda.Event | None) -> None:
        """What computes from now on waits for a copy."""
        if done is not None:
            torch.cuda.current_stream(self.device).wait_event(done)

    def finish(self) -> None:
        """Wait for all copies, here."""
        if self.stream is not None:
            self.stream.synchronize()


class Host:
    """The way of saved values to the host and back."""

    def __init__(self, device: torch.device) -> None:
        self.lane = Lane(device)
        self.leaving: list[Tensor] = []  # what is copied from, until the next transfer
        self.left: torch.cuda.Event | None = None

    def away(self, saved: Saved, stay: Collection[int]) -> Away:
        """Begin to move values; those in the memories `stay` (parameters, by address) are left where they are."""
        self._let_go()
        memories: dict[int, Tensor] = {}
        kept: list[Tensor | View | None] = []
        for x in saved:
            at = x.untyped_storage().data_ptr() if x is not None else 0
            if x is None or not at or at in stay:
                kept.append(x)
                continue
            if at not in memories:
                whole = torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())
                memories[at] = self.lane.room(whole.shape, torch.uint8)
                self.left = self.lane.copy(memories[at], whole)
                self.leaving.append(whole)
            kept.append(View(at, x.dtype, int(x.storage_offset()), x.shape, x.stride()))
        if self.left is None:
            self.leaving.clear()
        return Away(kept, memories)

    def back(self, away: Away) -> Coming:
        """Begin to bring them back; `settle` before they are used."""
        self._let_go()
        here: dict[int, Tensor] = {}
        done: torch.cuda.Event | None = None
        for at, x in away.memories.items():
            here[at] = torch.empty(x.shape, dtype=x.dtype, device=self.lane.device)
            done = self.lane.copy(here[at], x)
        return Coming([x.of(here[x.at]) if isinstance(x, View) else x for x in away.saved], done)

    def settle(self, coming: Coming) -> None:
        self.lane.settle(coming.here)

    def _let_go(self) -> None:
        """Free on the device what has left it."""
        self.lane.settle(self.left)
        self.leaving.clear()
        self.left = None
