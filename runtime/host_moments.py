"""Moments in the memory of the host (arXiv:2101.06840): those of a parameter are on its device for its update alone,
the next one's come and the last one's go meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.moments import MOMENTS, Rule
from specc.runtime.device import CPU
from specc.runtime.host import Lane

BESIDE = 2  # updates after which moments that went back are let go


@dataclass
class Visit:
    """Moments of parameters on their device, and when they have come, or have gone back."""

    moments: list[list[Tensor]]
    done: torch.cuda.Event | None


class HostMoments:
    """Moments by name and path."""

    def __init__(self, params: Mapping[str, Tensor], rules: Mapping[str, Rule]) -> None:
        self.lane = Lane(next(iter(params.values())).device if params else CPU)
        self.moments = {
            n: [self.lane.room(p.shape, p.dtype).zero_() for _ in MOMENTS[rules[n]]] for n, p in params.items()
        }

    def each(self, units: Sequence[Sequence[str]]) -> Iterator[list[list[Tensor]]]:
        """The moments of some parameters after those of others, on the device: they are updated before the next are
        asked for, and go back."""
        gone: list[Visit] = []
        coming = self._fetch(units[0]) if units else None
        for i, paths in enumerate(units):
            assert coming is not None
            here, coming = coming, self._fetch(units[i + 1]) if i + 1 < len(units) else None
            self.lane.settle(here.done)
            yield here.moments
            gone.append(self._store(paths, here))
            if len(gone) > BESIDE:
                self.lane.settle(gone.pop(0).done)
        self.lane.finish()

    def _fetch(self, paths: Sequence[str]) -> Visit:
        kept = [self.moments[path] for path in paths]
        if self.lane.stream is None:
            return Visit(kept, None)
        here = [[torch.empty_like(m, device=self.lane.device) for m in own] for own in kept]
        return Visit(here, self._copied(here, kept))

    def _store(self, paths: Sequence[str], here: Visit) -> Visit:
        if self.lane.stream is None:
            return here
        return Visit(here.moments, self._copied([self.moments[path] for path in paths], here.moments))

    def _copied(self, into: Sequence[Sequence[Tensor]], of: Sequence[Sequence[Tensor]]) -> torch.cuda.Event | None:
        """Begin to copy; the event is when all are there."""
        pairs = [pair for x, y in zip(into, of, strict=True) for pair in zip(x, y, strict=True)]
        return [self.lane.copy(x, y) for x, y in pairs][-1] if pairs else None
