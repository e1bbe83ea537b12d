"""Attention as an op of its own: graphs keep it as one node, whoever computes it.

Here is what does so without a compiler. On CPUs it multiplies blocks of queries: the scores of a block are whole,
causal blocks skip the keys that come later, keys and values of grouped heads are not repeated (a group's queries are
the rows of one product). The backward makes the weights of a block anew, so that nothing of length times length is kept
(arXiv:2205.14135). Other devices ask torch for what is fast there. Graphs that are compiled for a CPU take
specc.runtime.attention in its stead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from specc.compiler.lower.local import wide
from specc.compiler.lower.own import own_op

ROWS, FEW = 128, 16  # queries of a block at most, and of many heads and keys
MAX_SCORES = 1 << 20  # of a block, unless those of few queries of one sequence are more


def fake_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    b, s, h, e = q.shape
    t, kv_heads = k.shape[1:3]
    ok = k.shape == (b, t, kv_heads, e) and v.shape[:3] == (b, t, kv_heads) and h % kv_heads == 0
    seen = mask is None or (mask.dtype == torch.bool and mask.shape in ((1, s, t), (b, s, t)))
    if not ok or not seen or not q.dtype == k.dtype == v.dtype:
        told = [f"{x.dtype} {[*x.shape]}" for x in (q, k, v, mask) if x is not None]
        raise ValueError(f"attention of operands that do not fit: {', '.join(told)}")
    return q.new_empty(b, s, h, v.shape[3]), q.new_empty(b, h, s, dtype=_wide(q))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def fake_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, y: Tensor, sums: Tensor, dy: Tensor, causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _held(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, backward: bool) -> int:
    """Bytes that it holds beside its results: copies of keys and values, and of a block scores and weights."""
    if _is_plain(q, v, mask, causal):
        return 0
    size, keys = _wide(q).itemsize, k.shape[1]
    sequences, rows = _block(q, k)
    queries = min(sequences, q.shape[0]) * rows
    copies = (k.numel() + v.numel()) * size + (2 * keys * queries if mask is not None else 0)
    scores = q.shape[2] * queries * keys * size
    if not backward:
        return copies + 2 * scores
    work = 3 * scores + q.shape[2] * queries * v.shape[3] * size
    results = q.numel() + k.numel() + v.numel()
    if q.dtype == _wide(q):
        return copies + work
    # Gradients are summed in fp32: before there are results, and beside them at the end.
    return copies + results * size + max(work - results * q.element_size(), 0)


def _flops(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], mask: object, causal: bool, *_: Any, **__: Any
) -> float:  # fmt: skip
    """Of shapes: two products, of which a causal mask leaves half."""
    return 2.0 * math.prod(q[:3]) * k[1] * (q[3] + v[3]) * (0.5 if causal else 1.0)


def _flops_backward(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], mask: object, y: object, sums: object, dy: object,
    causal: bool, *_: Any, **__: Any,
) -> float:  # fmt: skip
    return 2.5 * _flops(q, k, v, mask, causal)


@own_op("attention_backward", fake_attention_backward,
        inside=lambda q, k, v, mask, y, sums, dy, causal, scale: _held(q, k, v, mask, causal, True),
        flops=_flops_backward, below_autograd=False)  # fmt: skip
def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, y: Tensor, sums: Tensor, dy: Tensor, causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v, from that of y and what the forward gave."""
    if q.device.type != "cpu":
        return _gradients_by_torch(q, k, v, mask, dy, causal, scale)
    if _is_plain(q, v, mask, causal):
        q, k, v, y, dy = (rows_of(x) for x in (q, k, v, y, dy))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = kernel(*(x.transpose(1, 2) for x in (dy, q, k, v, y)), sums, 0.0, False, scale=scale)
        return _swapped(dq), _swapped(dk), _swapped(dv)
    grads = [torch.zeros(x.shape, dtype=_wide(x)) for x in (q, k, v)]
    ks, vs = _swapped(wide(k)), _swapped(wide(v))  # a CPU may have no units for bf16
    for part, rows, n in _blocks(q, k, causal):
        first, seen = rows.start if causal else None, _of(mask, part, rows, n)
        operands = _grouped(q[part, rows], k), ks[part, :, :n], vs[part, :, :n]
        parts = grads[0][part, rows], grads[1][part, :n], grads[2][part, :n]
        _add_gradients(*operands, seen, _grouped(dy[part, rows], k), first, scale, parts)
    return grads[0].to(q.dtype), grads[1].to(k.dtype), grads[2].to(v.dtype)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.causal, ctx.scale = inputs[4:]


def _backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    q, k, v, mask, y, sums = ctx.saved_tensors
    dq, dk, dv = attention_backward(q, k, v, mask, y, sums, dy, ctx.causal, ctx.scale)
    return dq, dk, dv, None, None, None


@own_op(
    "attention", fake_attention, backward=_backward, save=save,
    inside=lambda q, k, v, mask, causal, scale: _held(q, k, v, mask, causal, False), flops=_flops,
)  # fmt: skip
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q [B S H E], k [B T K E], v [B T K F], mask [B or 1, S T] of bools -> y [B S H F], and in fp32 or wider [B H S]
    the logarithms of the sums of a query's weights. H is a multiple of K; a query that sees nothing gets zeros."""
    if q.device.type != "cpu":
        return _by_torch(q, k, v, mask, causal, scale), q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=_wide(q))
    if _is_plain(q, v, mask, causal):
        q, k, v = (rows_of(x) for x in (q, k, v))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = kernel(*(x.transpose(1, 2) for x in (q, k, v)), 0.0, False, scale=scale)
        return _swapped(out), sums.contiguous()
    y, sums = fake_attention(q, k, v, mask, causal, scale)
    ks, vs = _swapped(wide(k)), _swapped(wide(v))
    for part, rows, n in _blocks(q, k, causal):
        first, seen = rows.start if causal else None, _of(mask, part, rows, n)
        operands = _grouped(q[part, rows], k), ks[part, :, :n], vs[part, :, :n]
        sums[part, :, rows] = _attend(*operands, seen, first, scale, y[part, rows]).flatten(1, 2)
    return y, sums


def _is_plain(q: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> bool:
    """torch's own kernel is as fast where nothing is skipped (in bf16 not on every CPU)."""
    return mask is None and not causal and q.dtype != torch.bfloat16 and q.shape[3] == v.shape[3]


def _block(q: Tensor, k: Tensor) -> tuple[int, int]:
    """How many sequences, and how many queries of each."""
    a_query = q.shape[2] * k.shape[1]
    rows = min(q.shape[1], ROWS, max(FEW, MAX_SCORES // a_query))
    return max(1, MAX_SCORES // (a_query * rows)), rows


def _blocks(q: Tensor, k: Tensor, causal: bool) -> Iterator[tuple[slice, slice, int]]:
    """Sequences, queries, and how many keys these can see."""
    batch, queries, keys = *q.shape[:2], k.shape[1]
    sequences, rows = _block(q, k)
    for first in range(0, batch, sequences):
        for start in range(0, queries, rows):
            end = min(start + rows, queries)
            yield slice(first, first + sequences), slice(start, end), min(end, keys) if causal else keys


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, first: int | None, scale: float, out: Tensor
) -> Tensor:  # fmt: skip
    """Put a block's results into `out` [b s H F]; the logarithms [b K G s]."""
    p, some, sums = _weights(q, k, mask, first, scale)
    out.copy_(_ungrouped(_where(some, times(p, v))))
    return sums


def _add_gradients(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dy: Tensor, first: int | None, scale: float,
    to: tuple[Tensor, Tensor, Tensor],
) -> None:  # fmt: skip
    """Add a block's gradients to [b s H E], [b n K E], [b n K F]."""
    p, some, _ = _weights(q, k, mask, first, scale)
    dy = _where(some, dy)
    d_p = times(dy, v.transpose(2, 3))
    d_s = torch.ops.aten._softmax_backward_data.default(d_p, p, -1, p.dtype)
    del d_p
    to[0].add_(_ungrouped(times(d_s, k)), alpha=scale)
    to[1].add_(transposed_times(d_s, q).transpose(1, 2), alpha=scale)
    to[2].add_(transposed_times(p, dy).transpose(1, 2))


def _weights(
    q: Tensor, k: Tensor, mask: Tensor | None, first: int | None, scale: float
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """q [b K G s E], k [b K n E], in fp32 or wider -> softmax [b K G s n] of the scaled scores, uniform where a query
    sees nothing; where one sees something; logarithms [b K G s]. `first` is the place of the first query that sees no
    later key."""
    s, some = times(q * scale, k.transpose(2, 3)), None
    if first is not None:
        seen = torch.arange(first, first + q.shape[3])[:, None] >= torch.arange(k.shape[2])
        mask = seen if mask is None else seen & mask
    if mask is not None:
        s = s.masked_fill_(~mask, torch.finfo(s.dtype).min)
        some = mask.any(-1, keepdim=True)
    p = s.softmax(-1)
    return p, some, s.amax(-1) - p.amax(-1).log()


def _of(mask: Tensor | None, part: slice, rows: slice, n: int) -> Tensor | None:
    """[b or 1, 1, 1, s n] of a mask [B or 1, S T]."""
    return None if mask is None else (mask[part] if len(mask) > 1 else mask)[:, None, None, rows, :n]


def _where(some: Tensor | None, x: Tensor) -> Tensor:
    return x if some is None else torch.where(some, x, 0.0)


def rows_of(x: Tensor) -> Tensor:
    """With the numbers of a row beside each other, as kernels read them."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _swapped(x: Tensor) -> Tensor:
    """[B T K E] -> [B K T E], and back."""
    return x.transpose(1, 2).contiguous()


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[b s H E] -> [b K G s E] in fp32 or wider."""
    b, s, _, e = x.shape
    return wide(x).reshape(b, s, k.shape[2], -1, e).permute(0, 2, 3, 1, 4)


def _ungrouped(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2, 4).flatten(2, 3)


def times(x: Tensor, y: Tensor) -> Tensor:
    """x [B K G s i] times y [B K i j], as a batch of B K products of G s rows."""
    b, k, g, s, i = x.shape
    return torch.bmm(x.reshape(b * k, g * s, i), y.reshape(b * k, i, -1)).reshape(b, k, g, s, -1)


def transposed_times(x: Tensor, y: Tensor) -> Tensor:
    """x [B K G s n], y [B K G s j] -> [B K n j], summed over a group's queries."""
    b, k, g, s, n = x.shape
    product = torch.bmm(x.reshape(b * k, g * s, n).transpose(1, 2), y.reshape(b * k, g * s, -1))
    return product.reshape(b, k, n, -1)


def _by_torch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if mask is not None:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))  # else scores are made whole
        if causal:
            mask = mask & torch.ones(mask.shape[1:], dtype=torch.bool, device=mask.device).tril()
        mask, causal = mask[:, None], False
    y = scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return _swapped(y if mask is None else torch.where(mask.any(-1, keepdim=True), y, 0.0))


def _gradients_by_torch(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dy: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The forward runs again, so that it is torch's own pair of kernels that meets."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        dq, dk, dv = torch.autograd.grad(_by_torch(q, k, v, mask, causal, scale), (q, k, v), dy)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()
