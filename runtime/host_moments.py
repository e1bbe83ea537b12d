"""AdamW whose moments lie in the memory of the host (arXiv:2101.06840): those of a parameter are on its device for its
update alone, the next one's come and the last one's go meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.runtime.adamw import MOMENTS, no_steps, update
from specc.runtime.device import CPU
from specc.runtime.host import Lane
from specc.spec.stage import Optimizer

BESIDE = 2  # updates after which moments that went back are let go


@dataclass
class Visit:
    """Moments of a parameter on its device, and when they have come, or have gone back."""

    moments: list[Tensor]
    done: torch.cuda.Event | None


class HostMoments:
    """Moments by name and path; the counts of steps stay beside the parameters."""

    def __init__(self, spec: Optimizer, params: Mapping[str, Tensor]) -> None:
        self.spec, self.params = spec, params
        device = next(iter(params.values())).device if params else CPU
        self.lane = Lane(device)
        self.moments = {n: [self.lane.room(p.shape, p.dtype).zero_() for _ in MOMENTS] for n, p in params.items()}
        self.steps = {n: no_steps(p) for n, p in params.items()}

    def step(self, grads: Mapping[str, Tensor], lrs: Mapping[str, float], decays: Mapping[str, float]) -> None:
        """Update a parameter after the other."""
        paths = list(self.params)
        gone: list[Visit] = []
        coming = self._fetch(paths[0]) if paths else None
        for i, path in enumerate(paths):
            assert coming is not None
            here, coming = coming, self._fetch(paths[i + 1]) if i + 1 < len(paths) else None
            self.lane.settle(here.done)
            update(
                self.spec, [self.params[path]], [grads[path]], [here.moments], [self.steps[path]], lrs[path],
                decays[path],
            )  # fmt: skip
            gone.append(self._store(path, here))
            if len(gone) > BESIDE:
                self.lane.settle(gone.pop(0).done)
        self.lane.finish()

    def _fetch(self, path: str) -> Visit:
        if self.lane.stream is None:
            return Visit(self.moments[path], None)
        here = [torch.empty_like(m, device=self.lane.device) for m in self.moments[path]]
        return Visit(here, [self.lane.copy(x, m) for x, m in zip(here, self.moments[path], strict=True)][-1])

    def _store(self, path: str, here: Visit) -> Visit:
        if self.lane.stream is None:
            return here
        done = [self.lane.copy(m, x) for x, m in zip(here.moments, self.moments[path], strict=True)]
        return Visit(here.moments, done[-1])
