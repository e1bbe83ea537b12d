"""AdamW's update (arXiv:1711.05101, algorithm 2) by torch's fused kernel, which `torch.optim` calls as well.

`torch.optim` itself imports a compiler for its first optimizer, which takes two seconds of each process's start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specc.spec.optimizer import Muon, Optimizer, OptimizerSpec


@torch.no_grad()
def adamw(
    spec: OptimizerSpec, params: Sequence[Tensor], grads: Sequence[Tensor], moments: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor], lr: float, weight_decay: float,
) -> None:  # fmt: skip
    """Update tensors of one dtype and device in place; each has a moment of either kind and a count of steps (fp32)."""
    assert isinstance(spec, Optimizer | Muon)
    if not params:
        return
    torch._foreach_add_(list(steps), 1)
    first, second = ([m[i] for m in moments] for i in (0, 1))
    torch._fused_adamw_(
        list(params), fitted(grads, params), first, second, [], list(steps), lr=lr, beta1=spec.betas[0],
        beta2=spec.betas[1], weight_decay=weight_decay, eps=spec.eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def fitted(grads: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """Gradients as their parameters are: in dtype, and in the order of memory."""
    return [g.to(p.dtype).contiguous() for g, p in zip(grads, params, strict=True)]


def no_steps(param: Tensor) -> Tensor:
    """The count of a parameter's steps before the first."""
    return torch.zeros((), dtype=torch.float32, device=param.device)
