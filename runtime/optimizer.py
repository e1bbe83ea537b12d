"""AdamW over master weights in groups, learning-rate schedules and clipping."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from specc.runtime.adamw import MOMENTS, no_steps, state_of, update
from specc.runtime.host_moments import HostMoments
from specc.spec.errors import Diagnostic, SpecError, did_you_mean
from specc.spec.stage import Optimizer, Schedule


def learning_rate(schedule: Schedule, base: float, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) of `steps`; behind the last one it would be `final` of the base.

    `wsd` is "warm up, stay, decay" (arXiv:2404.06395): linear over the last share `decay` of all steps."""
    warmup, decays = schedule.lengths(steps)
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
            over = (step - (steps - decays)) / decays if decays else 0.0
            return base * (1 - (1 - final) * max(0.0, over))
    return base * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Group:
    """Parameters that share their settings."""

    paths: list[str]
    lr_scale: float
    weight_decay: float


def check_patterns(spec: Optimizer, trained: Collection[str]) -> None:
    """Raises SpecError for a pattern that matches no trained parameter of the model."""
    for key, pattern in [*(("no_decay", p) for p in spec.no_decay), *(("groups", g.match) for g in spec.groups)]:
        if not matches([pattern], trained):
            hint = did_you_mean(pattern, trained)
            text = f"no trained parameter matches the pattern '{pattern}' of optimizer.{key}"
            raise SpecError(Diagnostic("S304", text, hint=hint))


def groups(spec: Optimizer, params: Mapping[str, Tensor]) -> list[Group]:
    """The parameters by settings. The first of the spec's groups that matches a parameter counts.

    Without a word on decay, vectors, biases of whatever dims and what `no_decay` matches do not decay."""
    made: dict[tuple[float, float], list[str]] = {}
    free = matches(spec.no_decay, params)
    for path, tensor in params.items():
        group = next((g for g in spec.groups if fnmatchcase(path, g.match)), None)
        is_vector = tensor.ndim < 2 or path.rpartition(".")[2] == "bias"
        decay = 0.0 if is_vector or path in free else spec.weight_decay
        if group is not None and group.weight_decay is not None:
            decay = group.weight_decay
        made.setdefault((group.lr_scale if group else 1.0, decay), []).append(path)
    found = [Group(paths, scale, decay) for (scale, decay), paths in made.items()]
    return found or [Group([], 1.0, 0.0)]  # a rank of a pipeline may train nothing


def matches(patterns: Iterable[str], paths: Iterable[str]) -> set[str]:
    """The paths that a pattern matches."""
    tried = list(patterns)
    return {path for path in paths if any(fnmatchcase(path, p) for p in tried)}


class AdamW:
    """AdamW over named tensors; weights are updated in place. `on_host` keeps moments on the host."""

    def __init__(self, spec: Optimizer, params: Mapping[str, Tensor], on_host: bool = False) -> None:
        self.spec, self.params = spec, dict(params)
        self.groups = groups(spec, params)
        self.host = HostMoments(spec, self.params) if on_host else None
        here = {} if on_host else self.params
        self.moments = {n: [torch.zeros_like(p) for _ in MOMENTS] for n, p in here.items()}
        self.steps = {n: no_steps(p) for n, p in here.items()}

    def step(self, grads: Mapping[str, Tensor], lr: float) -> None:
        """One update at the learning rate `lr`, times each group's scale."""
        if self.host:
            lrs = {p: lr * g.lr_scale for g in self.groups for p in g.paths}
            self.host.step(grads, lrs, {p: g.weight_decay for g in self.groups for p in g.paths})
            return
        for g in self.groups:
            params, given = [self.params[n] for n in g.paths], [grads[n] for n in g.paths]
            moments, steps = [self.moments[n] for n in g.paths], [self.steps[n] for n in g.paths]
            update(self.spec, params, given, moments, steps, lr * g.lr_scale, g.weight_decay)

    def state(self) -> dict[str, Tensor]:
        """Moments and counts by `name/path`."""
        held = self.host or self
        return state_of(held.moments, held.steps)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        own = self.state()
        for key, value in state.items():
            own[key].copy_(value)


def squares(grads: Mapping[str, Tensor], owned: Iterable[str]) -> float:
    """The sum of the squares of the gradients that this rank counts; not finite if any gradient that it has is not."""
    counted = set(owned)
    names = sorted(grads)
    if not names:
        return 0.0
    norms = torch.stack([n.double() for n in torch._foreach_norm([grads[p] for p in names])])
    if bool(torch.isfinite(norms).all()):
        norms = norms[[i for i, p in enumerate(names) if p in counted]]
    return float(norms.square().sum())


def scale(grads: Mapping[str, Tensor], norm: float, limit: float | None) -> None:
    """Bring gradients of a global norm to one of at most `limit`."""
    if grads and limit is not None and math.isfinite(norm) and norm > limit:
        torch._foreach_mul_(list(grads.values()), limit / (norm + 1e-6))


def clip(grads: Mapping[str, Tensor], limit: float | None) -> float:
    """Scale the gradients of one process to a norm of at most `limit`; the norm before."""
    norm = math.sqrt(squares(grads, grads))
    scale(grads, norm, limit)
    return norm
