"""AdamW whose moments lie in the memory of the host (arXiv:2101.06840): those of a parameter are on its device for its
update alone, the next one's come and the last one's go meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from specc.runtime.device import CPU
from specc.runtime.host import Lane
from specc.spec.stage import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
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
        self.steps = {n: torch.zeros((), dtype=torch.float32, device=p.device) for n, p in params.items()}

    def step(self, grads: Mapping[str, Tensor], lrs: Mapping[str, float], decays: Mapping[str, float]) -> None:
        """Update a parameter after the other."""
        paths = list(self.params)
        gone: list[Visit] = []
        coming = self._fetch(paths[0]) if paths else None
        for i, path in enumerate(paths):
            assert coming is not None
            here, coming = coming, self._fetch(paths[i + 1]) if i + 1 < len(paths) else None
            self.lane.settle(here.done)
            grad = grads[path].to(self.params[path].dtype).contiguous()
            first, second = here.moments
            adamw(
                [self.params[path]], [grad], [first], [second], [], [self.steps[path]], fused=True,
                amsgrad=False, beta1=self.spec.betas[0], beta2=self.spec.betas[1], lr=lrs[path],
                weight_decay=decays[path], eps=self.spec.eps, maximize=False,
            )  # fmt: skip
            gone.append(self._store(path, here))
            if len(gone) > BESIDE:
                self.lane.settle(gone.pop(0).done)
        self.lane.finish()

    def state(self) -> dict[str, Tensor]:
        """Moments and counts by `name/path`."""
        found = {f"{name}/{n}": m for n, ms in self.moments.items() for name, m in zip(MOMENTS, ms, strict=True)}
        return found | {f"step/{n}": x for n, x in self.steps.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        own = self.state()
        for key, value in state.items():
            own[key].copy_(value)

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
