"""Implementations: the log-probability of each label, in fp32 or wider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specc.compiler.lower.local import Impl, Local, wide
from specc.compiler.lower.loss import added, chunk_rows, logits_of
from specc.compiler.ops.loss import IGNORE

# Of the logits and labels of some rows: [2, rows], the log-sum-exp of each and its label's logit.
Terms = Callable[[Tensor, Tensor], Tensor]
# By labels [rows]: which entry of a rank's logits is the label's, and whether the rank has it.
Places = Callable[[Tensor], tuple[Tensor, Tensor]]


def log_prob(e: Local, logits: Tensor, labels: Tensor) -> Tensor:
    rows, flat = wide(logits).reshape(-1, logits.shape[-1]), labels.reshape(-1)
    return of_terms(whole_terms(rows, flat), flat).reshape(labels.shape)


def of_terms(terms: Tensor, labels: Tensor) -> Tensor:
    """[rows]; 0 where there is no label."""
    log_z, picked = terms.unbind(0)
    return torch.where(labels != IGNORE, picked - log_z, 0.0)


def whole_terms(logits: Tensor, labels: Tensor) -> Tensor:
    """Where the vocabulary is whole."""
    at, _ = whole_places(labels)
    return torch.stack([torch.logsumexp(logits, -1), logits.gather(1, at[:, None])[:, 0]])


def whole_places(labels: Tensor) -> tuple[Tensor, Tensor]:
    return labels.clamp(min=0), labels != IGNORE


class LinearLogProb(torch.autograd.Function):
    """A chunk of rows at a time, forward and backward, which makes a chunk's logits again: they are never whole."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, terms: Terms, places: Places,
        needs: tuple[bool, bool, bool],
    ) -> Tensor:  # fmt: skip
        rows = chunk_rows(x.shape[0], weight.shape[1])
        parts = [
            terms(logits_of(x[i : i + rows], weight, bias), labels[i : i + rows]) for i in range(0, x.shape[0], rows)
        ]
        found = torch.cat(parts, 1)
        ctx.save_for_backward(x, weight, bias, labels, found[0])
        ctx.places, ctx.needs, ctx.rows = places, needs, rows
        return of_terms(found, labels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, labels, log_z = ctx.saved_tensors
        d_x: list[Tensor] = []
        d_weight: Tensor | None = None
        d_bias: Tensor | None = None
        for start in range(0, x.shape[0], ctx.rows):
            here = slice(start, start + ctx.rows)
            d = grads[0][here, None]
            # Rows that no gradient reaches are left out. It also keeps this product in the backward: what needs no
            # gradient would be made in the forward and kept.
            part = torch.where(d != 0, x[here], 0.0)
            grad = _by_logits(logits_of(part, weight, bias), labels[here], log_z[here], d, ctx.places)
            if ctx.needs[2]:
                d_bias = grad.sum(0) if d_bias is None else d_bias + grad.sum(0)
            grad = grad.to(x.dtype)
            if ctx.needs[0]:
                d_x.append(grad @ weight.t())
            if ctx.needs[1]:
                d_weight = added(d_weight, part, grad, weight.stride(0) == 1)
        of_weight = d_weight.t() if d_weight is not None and weight.stride(0) == 1 else d_weight
        of_bias = None if d_bias is None else d_bias.to(x.dtype)
        return torch.cat(d_x) if d_x else None, of_weight, of_bias, None, None, None, None


def _by_logits(logits: Tensor, labels: Tensor, log_z: Tensor, d: Tensor, places: Places) -> Tensor:
    """d of some rows times the gradient of their log-probabilities by a rank's logits [rows V]."""
    at, has = places(labels)
    kept = ((labels != IGNORE) & (d[:, 0] != 0))[:, None]  # logits of a row left out are 0: exp(-log_z) may be inf
    grad = torch.where(kept, (logits - log_z[:, None]).exp() * -d, 0.0)
    return grad.scatter_add(1, at[:, None], torch.where(has[:, None], d, 0.0))


def linear_log_prob(
    e: Local, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, terms: Terms = whole_terms,
    places: Places = whole_places,
) -> Tensor:  # fmt: skip
    matrix, rows = weight.reshape(x.shape[-1], -1), x.reshape(-1, x.shape[-1])
    needs = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (rows, matrix, bias))
    apply: Callable[..., Tensor] = LinearLogProb.apply
    return apply(rows, matrix, bias, labels.reshape(-1), terms, places, needs).reshape(labels.shape)


def from_bits(e: Local, bits: Tensor, like: Tensor) -> Tensor:
    return bits.view(torch.float64).to(like.dtype)


IMPLS: dict[str, Impl] = {"log_prob": log_prob, "linear_log_prob": linear_log_prob, "from_bits": from_bits}
