"""Losses of rows of logits, and their gradients: of a whole vocabulary at once, and of ranks' parts of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specc.compiler.kernels.cross_entropy import Head, make_cross_entropy
from specc.compiler.kernels.made import Made
from specc.compiler.lower.loss import chunk_loss, label_count
from specc.compiler.ops.loss import IGNORE
from tests.kernels.interpreter import Guarded
from tests.kernels.opcheck import CHECKS, failed_checks
from tests.kernels.regions import loaded

ROWS, WIDTH, PARTS = 7, 233, 3  # no part fills a block, nor has rows that are multiples of 16 bytes
WAYS = [(dtype, n_parts) for dtype in (torch.float32, torch.bfloat16) for n_parts in (1, PARTS)]
Loss = tuple[Tensor, Tensor]  # the sum of the rows' losses, and its gradient over the count


def losses(folder: Path) -> Iterator[dict[str, Any]]:
    """In Triton's interpreter: the errors, whether the guard bands stand, and which of torch's checks fail."""
    for dtype, n_parts in WAYS:
        made, guard = made_for(n_parts, dtype), Guarded()
        module, (logits, labels) = loaded(made, folder), drawn(dtype)
        module.CONFIGS.update({kind: ((64, 4),) for kind in module.CONFIGS})
        module.torch = guard  # type: ignore[attr-defined]
        parts = [guard.guarded(x) for x in logits.chunk(n_parts, 1)]
        loss, gradient = errors(computed(made.name, parts, guard.guarded(labels)), logits, labels)
        module.torch = torch  # type: ignore[attr-defined]
        yield {
            "name": made.name, "n_parts": n_parts, "dtype": str(dtype).removeprefix("torch."), "loss": loss,
            "gradient": gradient, "untouched": guard.untouched(), "checked": checked(made.name, parts, labels),
        }  # fmt: skip


def made_for(n_parts: int, dtype: torch.dtype) -> Made:
    return make_cross_entropy(Head(PARTS * WIDTH // n_parts, n_parts > 1, "a head"), dtype)


def drawn(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Labels of each part, and some that do not count; a row has nothing in one part."""
    draw = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(ROWS, PARTS * WIDTH, generator=draw)).to(dtype)
    logits[4, WIDTH : 2 * WIDTH] = float("-inf")
    return logits, torch.tensor([WIDTH - 1, WIDTH, IGNORE, IGNORE, 0, 2 * WIDTH, 3 * WIDTH - 1])


def computed(name: str, parts: Sequence[Tensor], labels: Tensor) -> Loss:
    """By the kernels of a file; those of several parts are what ranks run, which exchange terms in between."""
    op, count = getattr(torch.ops.specc, name), label_count(labels)
    if len(parts) == 1:
        each, grad = op(parts[0], labels, count)
        return each.sum(), grad
    firsts = [labels.new_tensor(i * parts[0].shape[1]) for i in range(len(parts))]
    terms = torch.stack([op(x, labels, first) for x, first in zip(parts, firsts, strict=True)])
    log_z, picked = terms[:, 0].logsumexp(0), terms[:, 1].sum(0)
    of_part = getattr(torch.ops.specc, f"{name}_gradient")
    grads = [of_part(x, labels, first, log_z, count) for x, first in zip(parts, firsts, strict=True)]
    return torch.where(labels != IGNORE, log_z - picked, 0.0).sum(), torch.cat(grads, 1)


def errors(got: Loss, logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of the loss and of the gradient against fp64, as shares of the largest; NaN where something was not written."""
    want = chunk_loss(logits.double(), labels, label_count(labels))
    loss, gradient = (float((a.cpu().double() - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True))
    return loss, gradient


def checked(name: str, parts: Sequence[Tensor], labels: Tensor) -> list[str]:
    """Which of torch's own checks of the ops fail."""
    x, count, first = parts[-1], label_count(labels), labels.new_tensor(0)
    calls: dict[str, Sequence[Tensor]] = {name: (x, labels, count)}
    if len(parts) > 1:
        log_z = x.float().logsumexp(-1)
        calls = {name: (x, labels, first), f"{name}_gradient": (x, labels, first, log_z, count)}
    return failed_checks(calls, CHECKS)
