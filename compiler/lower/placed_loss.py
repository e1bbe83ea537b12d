"""Losses whose rows or whose vocabulary is split.

Rows: each rank has its part of the sum, over the count of labels of all. Vocabulary: ranks exchange log-sum-exp and
the picked logit of each row, and each has the whole loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.lower.collectives import all_gather, all_reduce, step
from specc.compiler.lower.local import Impl, Local, wide
from specc.compiler.lower.loss import _logits, chunk_rows
from specc.compiler.lower.placed_ops import own_entries, spread
from specc.compiler.ops.loss import IGNORE
from specc.compiler.placement.reshard import Move
from specc.compiler.placement.types import Axis, R, S


@dataclass(frozen=True)
class Vocabulary:
    """The axes that split the vocabulary (with coordinates), and the numbers of this rank's entries."""

    axes: Sequence[tuple[Axis, Tensor]]
    places: Tensor


def label_count(e: Local, labels: Tensor) -> Tensor:
    """Labels that count, on all ranks that share the rows."""
    count = (labels != IGNORE).sum()
    for a in spread(e).summed():
        count = all_reduce(count, spread(e).mesh.axes[a])
    return count.clamp(min=1)


def vocabulary(e: Local, operand: int) -> Vocabulary | None:
    s = spread(e)
    axes = [s.axis(a) for a in s.using("vocab")]
    t = s.ins[operand]
    assert t is not None
    return Vocabulary(axes, s.places_of_operand(operand, len(t.dims) - 1)) if axes else None


def cross_entropy(e: Local, logits: Tensor, labels: Tensor) -> Tensor:
    exact, flat = wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    rows = exact.float() if e.attr("softmax") == "fp32" else exact
    vocab, smoothing = vocabulary(e, 0), e.attr("label_smoothing", 0.0)
    if vocab is None:
        log_z = torch.logsumexp(rows, -1)
        total = F.cross_entropy(rows, flat, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    else:
        log_z, picked, mean = _exchanged(_own_terms(rows, flat, vocab), vocab, differentiable=True).unbind(0)
        each = log_z - (1 - smoothing) * picked - smoothing * mean
        total = torch.where(flat != IGNORE, each, 0.0).sum()
    if e.attr("z_loss"):
        total = total + e.attr("z_loss") * torch.where(flat != IGNORE, log_z, 0.0).square().sum()
    return (total / label_count(e, flat)).to(exact.dtype)


def _own_terms(logits: Tensor, labels: Tensor, vocab: Vocabulary) -> Tensor:
    """[3, rows]: of this rank's logits the log-sum-exp, the label's, and the part of the mean."""
    at, here = own_entries(labels, vocab.places)
    picked = torch.where(here, logits.gather(1, at[:, None])[:, 0], 0.0)
    n = logits.shape[1]
    for axis, _ in vocab.axes:
        n *= axis.size
    return torch.stack([torch.logsumexp(logits, -1), picked, logits.sum(-1) / n])


def _exchanged(terms: Tensor, vocab: Vocabulary, differentiable: bool = False) -> Tensor:
    """The terms of all ranks together."""
    for axis, coordinate in reversed(vocab.axes):
        if differentiable:
            every = step(terms[None], Move(0, S(0), R), axis, coordinate)
        else:
            every = all_gather(terms[None], 0, axis)
        terms = torch.cat([torch.logsumexp(every[:, :1], 0), every[:, 1:].sum(0)])
    return terms


class _LinearCrossEntropy(torch.autograd.Function):
    """As compiler.lower.loss has it, with the count given and the vocabulary split."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, count: Tensor,
        vocab: Vocabulary | None, needs: tuple[bool, bool, bool],
    ) -> Tensor:  # fmt: skip
        rows = chunk_rows(x.shape[0], weight.shape[1])
        total = wide(x.new_zeros(()))
        d_x: list[Tensor] = []
        d_weight: Tensor | None = None
        d_bias: Tensor | None = None
        for start in range(0, x.shape[0], rows):
            part, target = x[start : start + rows], labels[start : start + rows]
            loss, grad = _chunk(_logits(part, weight, bias), target, count, vocab)
            if needs[2]:
                d_bias = grad.sum(0) if d_bias is None else d_bias + grad.sum(0)
            total, grad = total + loss, grad.to(x.dtype)
            if needs[0]:
                d_x.append(grad @ weight.t())
            if needs[1]:
                more = part.t() @ grad
                d_weight = more if d_weight is None else d_weight + more
        ctx.save_for_backward(torch.cat(d_x) if d_x else None, d_weight, None if d_bias is None else d_bias.to(x.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if d is None else (d * grads[0]).to(d.dtype) for d in ctx.saved_tensors)
        return *scaled, None, None, None, None


def _chunk(logits: Tensor, labels: Tensor, count: Tensor, vocab: Vocabulary | None) -> tuple[Tensor, Tensor]:
    """Loss of some rows, and its gradient over the count by this rank's logits."""
    kept = labels != IGNORE
    if vocab is None:
        at, here = labels.clamp(min=0), kept
        log_z, picked = torch.logsumexp(logits, -1), logits.gather(1, at[:, None])[:, 0]
    else:
        at, here = own_entries(labels, vocab.places)
        log_z, picked, _ = _exchanged(_own_terms(logits, labels, vocab), vocab).unbind(0)
    loss = torch.where(kept, log_z - picked, 0.0).sum()
    grad = torch.where(kept[:, None], (logits - log_z[:, None]).exp() / count, 0.0)
    hit = torch.where(kept & here, -1.0, 0.0).to(grad.dtype) / count  # -1 / count itself would be rounded to fp32
    return loss, grad.scatter_add(1, at[:, None], hit[:, None])


def linear_cross_entropy(e: Local, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    matrix, rows, flat = weight.reshape(x.shape[-1], -1), x.reshape(-1, x.shape[-1]), labels.reshape(-1)
    vocab = vocabulary(e, 1)
    if bias is not None and vocab is not None and bias.numel() != matrix.shape[1]:
        bias = bias.index_select(0, vocab.places)
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (rows, matrix, bias))
    apply: Callable[..., Tensor] = _LinearCrossEntropy.apply
    return apply(rows, matrix, bias, flat, label_count(e, flat), vocab, needs)


IMPLS: dict[str, Impl] = {"cross_entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy}
