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


class Host:
    """The way to the host and back. On a GPU copies run beside what computes, in order; on a CPU at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def away(self, saved: Saved, stay: Collection[int]) -> Away:
        """Begin to move values; those in the memories `stay` (parameters, by address) are left where they are."""
        memories: dict[int, Tensor] = {}
        kept: list[Tensor | View | None] = []
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for x in saved:
                at = x.untyped_storage().data_ptr() if x is not None else 0
                if x is None or not at or at in stay:
                    kept.append(x)
                    continue
                if at not in memories:
                    memories[at] = self._copied(x)
                kept.append(View(at, x.dtype, int(x.storage_offset()), x.shape, x.stride()))
        return Away(kept, memories)

    def back(self, away: Away) -> list[Tensor | None]:
        """Begin to bring them back; `settle` before they are used."""
        with torch.cuda.stream(self.stream):
            here = {at: x.to(self.device, non_blocking=True) for at, x in away.memories.items()}
        return [x.of(here[x.at]) if isinstance(x, View) else x for x in away.saved]

    def settle(self, saved: Saved) -> None:
        """What computes waits for what is on its way."""
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for x in saved:
                if x is not None:
                    x.record_stream(current)

    def _copied(self, x: Tensor) -> Tensor:
        """The whole memory of a value on the host."""
        whole = torch.empty(0, dtype=torch.uint8, device=self.device).set_(x.untyped_storage())
        if self.stream is None:
            return whole.clone()
        host = torch.empty(whole.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(whole, non_blocking=True)
        whole.record_stream(self.stream)
        return host
