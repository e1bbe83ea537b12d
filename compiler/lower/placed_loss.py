"""Losses whose rows or whose vocabulary is split.

Rows: each rank has its part of the sum, over the count of labels of all. Vocabulary: ranks exchange log-sum-exp and
the picked logit of each row, and each has the whole loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from specc.compiler.lower import log_prob as whole
from specc.compiler.lower.collectives import all_gather, all_reduce, step
from specc.compiler.lower.local import Impl, Local, wide
from specc.compiler.lower.loss import Chunk, LinearCrossEntropy, chunk_loss, mean_cross_entropy
from specc.compiler.lower.placed_ops import own_entries, spread
from specc.compiler.ops.loss import IGNORE
from specc.compiler.placement.reshard import Move
from specc.compiler.placement.types import Axis, R, S


@dataclass(frozen=True)
class Vocabulary:
    """The axes that split the vocabulary (with coordinates), and the numbers of this rank's entries."""

    axes: Sequence[tuple[Axis, Tensor]]
    places: Tensor


def count_of_all(e: Local, labels: Tensor) -> Tensor:
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
    vocab, count = vocabulary(e, 0), count_of_all(e, labels)
    if vocab is None:
        return mean_cross_entropy(e, logits, labels, count)
    exact, flat = wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    rows = exact.float() if e.attr("softmax") == "fp32" else exact
    smoothing = e.attr("label_smoothing", 0.0)
    terms = _own_terms(rows, flat, vocab.places)
    if smoothing:
        terms = torch.cat([terms, _share_of_mean(rows, vocab)[None]])
    log_z, picked, *mean = _exchanged(terms, vocab, differentiable=True).unbind(0)
    each = log_z - (1 - smoothing) * picked - (smoothing * mean[0] if smoothing else 0.0)
    total = torch.where(flat != IGNORE, each, 0.0).sum()
    if e.attr("z_loss"):
        total = total + e.attr("z_loss") * torch.where(flat != IGNORE, log_z, 0.0).square().sum()
    return (total / count).to(exact.dtype)


def _own_terms(logits: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """[2, rows]: of this rank's logits the log-sum-exp, and the label's."""
    at, here = own_entries(labels, places)
    picked = torch.where(here, logits.gather(1, at[:, None])[:, 0], 0.0)
    return torch.stack([torch.logsumexp(logits, -1), picked])


def _share_of_mean(logits: Tensor, vocab: Vocabulary) -> Tensor:
    return logits.sum(-1) / math.prod((logits.shape[1], *(axis.size for axis, _ in vocab.axes)))


def _exchanged(terms: Tensor, vocab: Vocabulary, differentiable: bool = False) -> Tensor:
    """The terms of all ranks together."""
    for axis, coordinate in reversed(vocab.axes):
        if differentiable:
            every = step(terms[None], Move(0, S(0), R), axis, coordinate)
        else:
            every = all_gather(terms[None], 0, axis)
        terms = torch.cat([torch.logsumexp(every[:, :1], 0), every[:, 1:].sum(0)])
    return terms


def _gradient(logits: Tensor, labels: Tensor, places: Tensor, log_z: Tensor, count: Tensor) -> Tensor:
    """Of the loss of some rows over the count, by this rank's logits."""
    kept = labels != IGNORE
    at, here = own_entries(labels, places)
    grad = torch.where(kept[:, None], (logits - log_z[:, None]).exp() / count, 0.0)
    hit = torch.where(here, -1.0, 0.0).to(grad.dtype) / count  # as in chunk_loss
    return grad.scatter_add(1, at[:, None], hit[:, None])


@dataclass(frozen=True)
class Part:
    """What a rank does with its logits of a chunk before ranks exchange terms, and after it."""

    terms: Callable[[Tensor, Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


ATEN = Part(_own_terms, _gradient)


def _chunk_loss(
    logits: Tensor, labels: Tensor, count: Tensor, vocab: Vocabulary, part: Part
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss of some rows, and its gradient over the count by this rank's logits."""
    log_z, picked = _exchanged(part.terms(logits, labels, vocab.places), vocab).unbind(0)
    loss = torch.where(labels != IGNORE, log_z - picked, 0.0).sum()
    return loss, part.gradient(logits, labels, vocab.places, log_z, count)


def linear_cross_entropy(
    e: Local, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, chunk: Chunk = chunk_loss,
    part: Part = ATEN,
) -> Tensor:  # fmt: skip
    matrix, rows, flat = weight.reshape(x.shape[-1], -1), x.reshape(-1, x.shape[-1]), labels.reshape(-1)
    vocab = vocabulary(e, 1)
    if bias is not None and vocab is not None and bias.numel() != matrix.shape[1]:
        bias = bias.index_select(0, vocab.places)
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (rows, matrix, bias))
    of_rows = chunk if vocab is None else partial(_chunk_loss, vocab=vocab, part=part)
    apply: Callable[..., Tensor] = LinearCrossEntropy.apply
    return apply(rows, matrix, bias, flat, count_of_all(e, flat), of_rows, needs)


def log_prob(e: Local, logits: Tensor, labels: Tensor) -> Tensor:
    vocab = vocabulary(e, 0)
    if vocab is None:
        return whole.log_prob(e, logits, labels)
    rows, flat = wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    terms = _exchanged(_own_terms(rows, flat, vocab.places), vocab, differentiable=True)
    return whole.of_terms(terms, flat).reshape(labels.shape)


def linear_log_prob(
    e: Local, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None
) -> Tensor:  # fmt: skip
    vocab = vocabulary(e, 1)
    if vocab is None:
        return whole.linear_log_prob(e, x, weight, labels, bias)
    if bias is not None and bias.numel() != vocab.places.numel():
        bias = bias.index_select(0, vocab.places)

    def terms(logits: Tensor, some: Tensor) -> Tensor:
        return _exchanged(_own_terms(logits, some, vocab.places), vocab)

    return whole.linear_log_prob(e, x, weight, labels, bias, terms, partial(own_entries, places=vocab.places))


IMPLS: dict[str, Impl] = {
    "cross_entropy": cross_entropy, "linear_cross_entropy": linear_cross_entropy, "log_prob": log_prob,
    "linear_log_prob": linear_log_prob,
}  # fmt: skip
