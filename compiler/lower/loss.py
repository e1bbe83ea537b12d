"""Implementations: losses, in fp32 or wider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.lower.local import Impl, Local, wide
from specc.compiler.ops.loss import IGNORE

CHUNK_ELEMENTS = 1 << 22  # logits held at a time,
MAX_CHUNKS = 16  # if that takes no more chunks than this: each chunk is a piece of the graph


def cross_entropy(e: Local, logits: Tensor, labels: Tensor) -> Tensor:
    exact, flat = wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    rows = exact.float() if e.attr("softmax") == "fp32" else exact
    count = (flat != IGNORE).sum().clamp(min=1)
    total = F.cross_entropy(
        rows, flat, ignore_index=IGNORE, reduction="sum", label_smoothing=e.attr("label_smoothing", 0.0)
    )
    if e.attr("z_loss"):
        z = torch.where(flat != IGNORE, torch.logsumexp(rows, -1), 0.0)
        total = total + e.attr("z_loss") * z.square().sum()
    return (total / count).to(exact.dtype)


def chunk_rows(rows: int, vocab: int) -> int:
    """Rows whose logits are held at a time."""
    return min(rows, max(CHUNK_ELEMENTS // vocab, -(-rows // MAX_CHUNKS)))


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a chunk of rows at a time: the logits of the batch are never whole."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, needs: tuple[bool, bool, bool]
    ) -> Tensor:
        count = (labels != IGNORE).sum().clamp(min=1)
        rows = chunk_rows(x.shape[0], weight.shape[1])
        total = wide(x.new_zeros(()))
        d_x: list[Tensor] = []
        d_weight: Tensor | None = None
        d_bias: Tensor | None = None
        for start in range(0, x.shape[0], rows):
            part, target = x[start : start + rows], labels[start : start + rows]
            logits = _logits(part, weight, bias)
            log_z = torch.logsumexp(logits, -1, keepdim=True)
            kept = (target != IGNORE)[:, None]
            at = target.clamp(min=0)[:, None]
            total = total + torch.where(kept, log_z - logits.gather(1, at), 0.0).sum()
            grad = torch.where(kept, (logits - log_z).exp() / count, 0.0)
            hit = torch.where(kept, -1.0, 0.0).to(grad.dtype) / count  # -1 / count itself would be rounded to fp32
            grad = grad.scatter_add(1, at, hit)
            if needs[2]:
                d_bias = grad.sum(0) if d_bias is None else d_bias + grad.sum(0)
            grad = grad.to(x.dtype)
            if needs[0]:
                d_x.append(grad @ weight.t())
            if needs[1]:
                more = part.t() @ grad
                d_weight = more if d_weight is None else d_weight + more
        ctx.save_for_backward(torch.cat(d_x) if d_x else None, d_weight, None if d_bias is None else d_bias.to(x.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        d_x, d_weight, d_bias = ctx.saved_tensors
        g = grads[0]
        return _scaled(d_x, g), _scaled(d_weight, g), None, _scaled(d_bias, g), None


def _scaled(t: Tensor | None, g: Tensor) -> Tensor | None:
    return None if t is None else (t * g).to(t.dtype)


def linear_cross_entropy(e: Local, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    matrix = weight.reshape(x.shape[-1], -1)
    rows = x.reshape(-1, x.shape[-1])
    needs = (rows.requires_grad, matrix.requires_grad, bias is not None and bias.requires_grad)
    if not (torch.is_grad_enabled() and any(needs)):
        return _loss_only(rows, matrix, labels.reshape(-1), bias)
    apply: Callable[..., Tensor] = _LinearCrossEntropy.apply
    out = apply(rows, matrix, labels.reshape(-1), bias, needs)
    return out


def _loss_only(x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    rows = chunk_rows(x.shape[0], weight.shape[1])
    total = wide(x.new_zeros(()))
    for start in range(0, x.shape[0], rows):
        logits = _logits(x[start : start + rows], weight, bias)
        total = total + F.cross_entropy(logits, labels[start : start + rows], ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return wide(x @ weight if bias is None else torch.addmm(bias, x, weight))


IMPLS: dict[str, Impl] = {"cross_entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy}
