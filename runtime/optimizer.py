"""An optimizer over master weights in groups, learning-rate schedules and clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.moments import MOMENTS, Matrix, Rule, settings_of
from specc.runtime.adamw import no_steps
from specc.runtime.host_moments import HostMoments
from specc.runtime.muon import Bucket, buckets, muon
from specc.runtime.pieces import WHOLE, Sharding
from specc.runtime.updates import UPDATES, state_of
from specc.spec.optimizer import Muon, OptimizerSpec
from specc.spec.stage import Schedule


def learning_rate(schedule: Schedule, base: float, step: int, steps: int) -> float:
    """The learning rate of a step (from 0) of `steps`; behind the last one it would be `final` of the base.

    `inverse_sqrt` is that of arXiv:1706.03762, eq. 3: behind the warmup w it is base * sqrt(w / (step + 1)).
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
        case "inverse_sqrt":
            return base * math.sqrt(max(1, warmup) / (step + 1))
    return base * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Group:
    """Parameters that are updated alike."""

    rule: Rule
    paths: list[str]
    lr_scale: float
    weight_decay: float


def groups(
    spec: OptimizerSpec, params: Mapping[str, Tensor], matrices: Mapping[str, Matrix] | None = None
) -> list[Group]:  # fmt: skip
    """The parameters by rule and settings."""
    made: dict[tuple[Rule, float, float], list[str]] = {}
    for path, settings in settings_of(spec, {n: p.ndim for n, p in params.items()}, matrices or {}).items():
        made.setdefault(settings, []).append(path)
    return [Group(rule, paths, scale, decay) for (rule, scale, decay), paths in made.items()]


@dataclass(frozen=True)
class Unit:
    """Parameters of a group that are updated at once; with `bucket` by Muon."""

    group: Group
    paths: Sequence[str]
    bucket: Bucket | None = None


class Updater:
    """Updates named tensors in place, by the rules of the optimizer's kind. `on_host` keeps moments on the host.

    `matrices` are those that Muon makes orthogonal, with products in `dtype`; on a mesh the tensors are this rank's
    parts by `sharding`, and all ranks step together."""

    def __init__(
        self, spec: OptimizerSpec, params: Mapping[str, Tensor], on_host: bool = False,
        matrices: Mapping[str, Matrix] | None = None, sharding: Sharding = WHOLE, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.spec, self.params, self.dtype = spec, dict(params), dtype
        self.groups = groups(spec, params, matrices)
        self.rules = {n: g.rule for g in self.groups for n in g.paths}
        self.units = list(self._units(matrices or {}, sharding, alone=on_host))
        if on_host:  # in the order of the model, whose predicted memory this is
            places = {n: i for i, n in enumerate(self.params)}
            self.units.sort(key=lambda u: places[u.paths[0]])
        self.host = HostMoments(self.params, self.rules) if on_host else None
        self.moments = self.host.moments if self.host else {
            n: [torch.zeros_like(p) for _ in MOMENTS[self.rules[n]]] for n, p in self.params.items()
        }  # fmt: skip
        self.steps = {n: no_steps(p) for n, p in self.params.items() if self.rules[n] == "adamw"}

    def _units(self, matrices: Mapping[str, Matrix], sharding: Sharding, alone: bool) -> Iterator[Unit]:
        for g in self.groups:
            if g.rule == "muon":
                assert isinstance(self.spec, Muon)
                found = buckets(self.spec, {n: self.params[n] for n in g.paths}, matrices, sharding)
                yield from (Unit(g, b.paths, b) for b in found)
            else:
                yield from (Unit(g, paths) for paths in ([[n] for n in g.paths] if alone else [g.paths]))

    def step(self, grads: Mapping[str, Tensor], lr: float) -> None:
        """One update at the learning rate `lr`, times each group's scale; gradients may be overwritten."""
        each = (u.paths for u in self.units)
        held = self.host.each(list(each)) if self.host else ([self.moments[n] for n in paths] for paths in each)
        for unit, moments in zip(self.units, held, strict=True):
            self._update(unit, grads, moments, lr)

    def _update(self, u: Unit, grads: Mapping[str, Tensor], moments: list[list[Tensor]], lr: float) -> None:
        params, given = [self.params[n] for n in u.paths], [grads[n] for n in u.paths]
        rate, decay = lr * u.group.lr_scale, u.group.weight_decay
        if u.bucket:
            assert isinstance(self.spec, Muon)
            muon(self.spec, u.bucket, params, given, [m for (m,) in moments], rate, decay, self.dtype)
        else:
            steps = [self.steps[n] for n in u.paths if n in self.steps]
            UPDATES[u.group.rule](self.spec, params, given, moments, steps, rate, decay)

    def state(self) -> dict[str, Tensor]:
        """Moments and counts by `name/path`."""
        return state_of(self.rules, self.moments, self.steps)

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
