"""Implementations: losses, in fp32 or wider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.lower.local import Impl, Local, wide
from specc.compiler.ops.loss import IGNORE

CHUNK_ELEMENTS = 1 << 24  # logits held at a time,
MAX_CHUNKS = 16  # if that takes no more chunks than this: each chunk is a piece of the graph


def label_count(labels: Tensor) -> Tensor:
    """Labels that count."""
    return (labels != IGNORE).sum().clamp(min=1)


def cross_entropy(e: Local, logits: Tensor, labels: Tensor) -> Tensor:
    return mean_cross_entropy(e, logits, labels, label_count(labels))


def mean_cross_entropy(e: Local, logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """The rows' losses over a count of labels: theirs, or that of all ranks."""
    exact, flat = wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    rows = exact.float() if e.attr("softmax") == "fp32" else exact
    total = F.cross_entropy(rows, flat, ignore_index=IGNORE, reduction="sum")
    if smoothing := e.attr("label_smoothing", 0.0):  # torch's own writes into an operand
        every = torch.where(flat != IGNORE, torch.logsumexp(rows, -1) - rows.mean(-1), 0.0)
        total = (1 - smoothing) * total + smoothing * every.sum()
    if e.attr("z_loss"):
        z = torch.where(flat != IGNORE, torch.logsumexp(rows, -1), 0.0)
        total = total + e.attr("z_loss") * z.square().sum()
    return (total / count).to(exact.dtype)


def chunk_rows(rows: int, vocab: int) -> int:
    """Rows whose logits are held at a time."""
    return min(rows, max(CHUNK_ELEMENTS // vocab, -(-rows // MAX_CHUNKS)))


# Of the logits and labels of some rows, and a count: their loss, and its gradient over the count by the logits.
Chunk = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def chunk_loss(logits: Tensor, labels: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Where the vocabulary is whole."""
    log_z = torch.logsumexp(logits, -1, keepdim=True)
    kept = (labels != IGNORE)[:, None]
    at = labels.clamp(min=0)[:, None]
    loss = torch.where(kept, log_z - logits.gather(1, at), 0.0).sum()
    grad = torch.where(kept, (logits - log_z).exp() / count, 0.0)
    hit = torch.where(kept, -1.0, 0.0).to(grad.dtype) / count  # -1 / count itself would be rounded to fp32
    return loss, grad.scatter_add(1, at, hit)


class LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a chunk of rows at a time: the logits of the batch are never whole."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, count: Tensor, chunk: Chunk,
        needs: tuple[bool, bool, bool],
    ) -> Tensor:  # fmt: skip
        rows = chunk_rows(x.shape[0], weight.shape[1])
        is_table = weight.stride(0) == 1  # of an embedding, a row a word: so is its gradient, and nobody turns it
        total = wide(x.new_zeros(()))
        d_x: list[Tensor] = []
        d_weight: Tensor | None = None
        d_bias: Tensor | None = None
        for start in range(0, x.shape[0], rows):
            part, target = x[start : start + rows], labels[start : start + rows]
            loss, grad = chunk(logits_of(part, weight, bias), target, count)
            total = total + loss
            if needs[2]:
                d_bias = grad.sum(0) if d_bias is None else d_bias + grad.sum(0)
            grad = grad.to(x.dtype)
            if needs[0]:
                d_x.append(grad @ weight.t())
            if needs[1]:
                d_weight = added(d_weight, part, grad, is_table)
        of_weight = d_weight.t() if is_table and d_weight is not None else d_weight
        of_bias = None if d_bias is None else d_bias.to(x.dtype)
        ctx.save_for_backward(torch.cat(d_x) if d_x else None, of_weight, of_bias)
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if d is None else (d * grads[0]).to(d.dtype) for d in ctx.saved_tensors)
        return *scaled, None, None, None, None


def added(total: Tensor | None, x: Tensor, grad: Tensor, is_table: bool) -> Tensor:
    """With the weight's gradient of some rows; that of an embedding has a row a word. The sum is in the product: one
    apart would wait for the products of all chunks, if it is fused."""
    a, b = (grad.t(), x) if is_table else (x.t(), grad)
    return a @ b if total is None else torch.addmm(total, a, b)


def linear_cross_entropy(
    e: Local, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, chunk: Chunk = chunk_loss
) -> Tensor:  # fmt: skip
    matrix = weight.reshape(x.shape[-1], -1)
    rows = x.reshape(-1, x.shape[-1])
    needs = (rows.requires_grad, matrix.requires_grad, bias is not None and bias.requires_grad)
    if not (torch.is_grad_enabled() and any(needs)):
        return _loss_only(rows, matrix, labels.reshape(-1), bias)
    flat = labels.reshape(-1)
    apply: Callable[..., Tensor] = LinearCrossEntropy.apply
    return apply(rows, matrix, bias, flat, label_count(flat), chunk, needs)


def _loss_only(x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    rows = chunk_rows(x.shape[0], weight.shape[1])
    total = wide(x.new_zeros(()))
    for start in range(0, x.shape[0], rows):
        logits = logits_of(x[start : start + rows], weight, bias)
        total = total + F.cross_entropy(logits, labels[start : start + rows], ignore_index=IGNORE, reduction="sum")
    return total / label_count(labels)


def logits_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return wide(x @ weight if bias is None else torch.addmm(bias, x, weight))


IMPLS: dict[str, Impl] = {"cross_entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy}
