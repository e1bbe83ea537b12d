"""How tensors are updated from their own numbers alone: AdamW, Lion, and gradient descent with momentum or without.

An update may write into the gradients, which nobody reads after it. Decay is apart from gradients in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from specc.compiler.moments import MOMENTS, Rule
from specc.runtime.adamw import adamw, fitted
from specc.spec.optimizer import SGD, Lion, OptimizerSpec

# Of tensors of one dtype and device: settings, parameters, gradients, moments and counts of steps of each (counts are
# AdamW's alone), the rate, the decay.
Update = Callable[
    [OptimizerSpec, Sequence[Tensor], Sequence[Tensor], Sequence[Sequence[Tensor]], Sequence[Tensor], float, float],
    None,
]


@torch.no_grad()
def lion(
    spec: OptimizerSpec, params: Sequence[Tensor], grads: Sequence[Tensor], moments: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor], lr: float, weight_decay: float,
) -> None:  # fmt: skip
    """Algorithm 2 of arXiv:2302.06675, a parameter after the other: the update is a tensor of its own."""
    assert isinstance(spec, Lion)
    for p, g, (mean,) in zip(params, fitted(grads, params), moments, strict=True):
        change = torch.lerp(mean, g, 1 - spec.betas[0]).sign_()
        p.mul_(1 - lr * weight_decay).add_(change, alpha=-lr)
        mean.lerp_(g, 1 - spec.betas[1])
        del change  # before the next one is made


@torch.no_grad()
def sgd(
    spec: OptimizerSpec, params: Sequence[Tensor], grads: Sequence[Tensor], moments: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor], lr: float, weight_decay: float,
) -> None:  # fmt: skip
    """w <- (1 - lr decay) w - lr g; with momentum v <- momentum v + g takes the place of g, and g + momentum v with
    Nesterov's (as torch.optim.SGD)."""
    assert isinstance(spec, SGD)
    changes = fitted(grads, params)
    if spec.momentum and params:
        sums = [v for (v,) in moments]
        torch._foreach_mul_(sums, spec.momentum)
        torch._foreach_add_(sums, changes)
        if spec.nesterov:
            torch._foreach_add_(changes, sums, alpha=spec.momentum)
        changes = changes if spec.nesterov else sums
    if params:
        torch._foreach_mul_(list(params), 1 - lr * weight_decay)
        torch._foreach_add_(list(params), changes, alpha=-lr)


UPDATES: Mapping[Rule, Update] = {"adamw": adamw, "lion": lion, "sgd": sgd, "momentum": sgd}


def state_of(
    rules: Mapping[str, Rule], moments: Mapping[str, Sequence[Tensor]], steps: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Moments and counts by `name/path`, as checkpoints have them."""
    found = {f"{name}/{n}": m for n, own in moments.items() for name, m in zip(MOMENTS[rules[n]], own, strict=True)}
    return found | {f"step/{n}": count for n, count in steps.items()}
