"""AdamW over fp32 master weights, learning-rate schedules, clipping, and the guard against bad numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from specc.spec.errors import Diagnostic, SpecError
from specc.spec.stage import Optimizer, Schedule


def learning_rate(schedule: Schedule, base: float, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) of `steps`."""
    warmup = int(schedule.warmup * steps) if schedule.warmup < 1 else int(schedule.warmup)
    if step < warmup:
        return base * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    final = schedule.final
    match schedule.kind:
        case "constant":
            return base
        case "linear":
            return base * (1 - (1 - final) * done)
        case "wsd":
            over = (done - (1 - schedule.decay)) / max(schedule.decay, 1e-9)
            return base * (1 - (1 - final) * max(0.0, over))
    return base * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


class AdamW:
    """torch's fused AdamW over named tensors; weights are updated in place."""

    def __init__(self, spec: Optimizer, params: Mapping[str, Tensor]) -> None:
        self.spec, self.params = spec, dict(params)
        for pattern in spec.no_decay:
            if not any(fnmatchcase(p, pattern) for p in params):
                raise SpecError(Diagnostic("S304", f"no parameter matches the no_decay pattern '{pattern}'"))
        plain = [p for p in params if params[p].ndim < 2 or any(fnmatchcase(p, q) for q in spec.no_decay)]
        self.groups = [[p for p in params if p not in plain], plain]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [self.params[p] for p in names], "weight_decay": decay}
                for names, decay in zip(self.groups, (spec.weight_decay, 0.0), strict=True)
                if names
            ],
            lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True,
        )  # fmt: skip

    def step(self, grads: Mapping[str, Tensor], lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for path, tensor in self.params.items():
            tensor.grad = grads[path].to(tensor.dtype)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and counts by `name/path`."""
        found: dict[str, Tensor] = {}
        for path, tensor in self.params.items():
            for name, value in self.optimizer.state[tensor].items():
                found[f"{name}/{path}"] = value
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, value in state.items():
            name, path = key.split("/", 1)
            self.optimizer.state[self.params[path]][name] = value.clone()


def clip(grads: Mapping[str, Tensor], limit: float | None) -> float:
    """Scale the gradients to a global norm of at most `limit`; the norm before. Not finite if any gradient is not."""
    norms = torch._foreach_norm([grads[p] for p in sorted(grads)])
    norm = float(torch.stack([n.double() for n in norms]).square().sum().sqrt())
    if limit is not None and math.isfinite(norm) and norm > limit:
        torch._foreach_mul_(list(grads.values()), limit / (norm + 1e-6))
    return norm


def bad_tensors(tensors: Mapping[str, Tensor]) -> list[str]:
    """`path: 3 of 4096 are not finite`, for every tensor with such elements."""
    found: list[str] = []
    for path, t in tensors.items():
        bad = int((~torch.isfinite(t)).sum())
        if bad:
            found.append(f"{path}: {bad} of {t.numel()} are not finite")
    return found
