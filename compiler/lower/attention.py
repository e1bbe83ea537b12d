"""Implementations: attention, masks and positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.lower.attend import attention
from specc.compiler.lower.decode import Decoding
from specc.compiler.lower.local import Impl, Local, align
from specc.compiler.lower.pointwise import formula
from specc.compiler.ops.attention import between


def attend(e: Local, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """q [... S H E], k [... T K E], v [... T K F] -> [... S H F]."""
    decoding = e.decoding if e.decoding and e.dims(1)[-3].name == e.decoding.seq else None
    if decoding:
        k, v = decoding.cached(e.eqn.outs[0], k, v)
        if mask is None:
            mask = _seen(decoding, q.shape[-3], causal=bool(e.attr("causal", False)))
    elif mask is None and bias is not None and e.attr("causal", False):  # the kernel takes one of the two
        mask = torch.ones(q.shape[-3], k.shape[-3], dtype=torch.bool, device=q.device).tril()[None]
    if bias is None and not decoding and (e.attr("softmax") != "fp32" or q.dtype != torch.float64):
        return _attend(e, q, k, v, mask)
    q4, k4, v4 = (_heads_first(x) for x in (q, k, v))
    groups = q4.shape[1] // k4.shape[1]
    if groups > 1:
        k4, v4 = _repeat(k4, groups), _repeat(v4, groups)
    term = _score_term(e, mask, bias, q.dtype)
    is_causal = bool(e.attr("causal", False)) and term is None
    if e.attr("softmax") == "fp32" and q.dtype == torch.float64:
        y = _attend_fp32(q4, k4, v4, term, is_causal, e.attr("scale"))
    else:
        y = F.scaled_dot_product_attention(q4, k4, v4, attn_mask=term, is_causal=is_causal, scale=e.attr("scale"))
    return y.transpose(1, 2).reshape(e.shape())


def _attend(e: Local, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q4, k4, v4 = (_one_batch(x, 3) for x in (q, k, v))
    seen = None if mask is None else _one_batch(mask, 2)
    scale = e.attr("scale") or q.shape[-1] ** -0.5
    y, _ = attention(q4, k4, v4, seen, bool(e.attr("causal", False)), scale)
    return y.reshape(e.shape())


def _one_batch(x: Tensor, own: int) -> Tensor:
    """With one dim before its last, own ones: itself if it is so, as the backward keeps it."""
    return x if x.ndim == own + 1 else x.reshape(-1, *x.shape[-own:])


def _attend_fp32(q: Tensor, k: Tensor, v: Tensor, term: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """fp64 attention whose softmax is rounded to fp32, as the published implementations of many models do."""
    scores = q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
    if is_causal:
        term = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if term is not None:
        scores = scores.masked_fill(~term, -math.inf) if term.dtype == torch.bool else scores + term
    return F.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


def _seen(decoding: Decoding, width: int, causal: bool) -> Tensor:
    """Which of the cached keys the new tokens see, [1 width capacity]."""
    keys = torch.arange(decoding.capacity)[None, :]
    last = decoding.places(width)[:, None] if causal else decoding.end - 1
    return (keys <= last).expand(width, -1)[None]


def _heads_first(x: Tensor) -> Tensor:
    """[... S H E] -> [B H S E]."""
    return _one_batch(x, 3).transpose(1, 2)


def _repeat(x: Tensor, groups: int) -> Tensor:
    b, k, t, e = x.shape
    return x[:, :, None].expand(b, k, groups, t, e).reshape(b, k * groups, t, e)


def _score_term(e: Local, mask: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores, as [B H S T]: the mask alone stays bool."""
    if mask is not None:
        mask = _one_batch(mask, 2)[:, None]
    if bias is None:
        return mask
    term = bias.movedim(-1, -3).to(dtype)
    term = term.reshape(-1, *term.shape[-3:])
    return term if mask is None else torch.where(mask, term, -math.inf)


def mask(e: Local, *attributes: Tensor) -> Tensor:
    """Dense [... S T], true where the query sees the key."""
    decoding = e.decoding if e.decoding and e.attr("q").name == e.decoding.seq else None
    *batch, q, k = e.shape()  # on a mesh, queries are a rank's part and keys are whole
    last = len(batch) + 1
    if decoding:
        k = decoding.capacity
    queries, keys = (decoding.places(q), torch.arange(k)) if decoding else (e.places(last - 1), e.places(last))
    values = {"q.index": queries[:, None], "k.index": keys[None, :]}
    for name, own, value in zip(e.attr("names"), e.eqn.ins, attributes, strict=True):
        is_key = name.startswith("k.")
        of_keys = decoding.keys[own or ""] if decoding and is_key else value
        values[name] = of_keys.unsqueeze(-2 if is_key else -1)
    seen = formula(e.attr("predicate"), values)
    shape = (*batch, q, k)
    if not isinstance(seen, Tensor):
        seen = torch.full(shape, bool(seen))
    if decoding:
        seen = seen & (values["k.index"] < decoding.end)
    return seen.expand(shape).contiguous()


def rope(e: Local, x: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs of x [... S H E] by position times frequency; angles in fp32 or wider."""
    rotated = int(x.shape[-1] * e.attr("fraction"))
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    pairs = torch.arange(0, rotated, 2, device=x.device, dtype=exact)
    frequency = e.attr("theta") ** (-pairs / rotated)
    at = align(positions, e.dims(1), e.dims(0)[:-1]).to(exact)[..., None]
    if e.attr("original") is None:
        angle = at / e.attr("scaling") * frequency
    else:
        angle = at * stretched(frequency, e.attr("scaling"), e.attr("original"), *between(e.eqn.attrs))
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    turned, kept = x[..., :rotated], x[..., rotated:]
    if e.attr("layout") == "half":
        a, b = turned.chunk(2, -1)
        y = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        y = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return torch.cat([y, kept], -1) if rotated < x.shape[-1] else y


def stretched(frequency: Tensor, scaling: float, original: float, low: float, high: float) -> Tensor:
    """Frequencies for longer texts: waves that the `original` length has less than `low` times are slower by `scaling`,
    those that it has more than `high` times stay, the others lie between (Llama 3.1, arXiv:2407.21783)."""
    stays = ((frequency * (original / (2 * math.pi)) - low) / (high - low)).clamp(0, 1)
    return frequency * (stays + (1 - stays) / scaling)


def relative_bucket(e: Local) -> Tensor:
    """T5's buckets: half exact, half logarithmic in the distance; [S T]."""
    q, k = e.shape()
    queries, keys = e.places(0), e.places(1)
    if e.decoding and e.attr("q").name == e.decoding.seq:
        queries = e.decoding.places(q)
        keys = torch.arange(e.decoding.capacity if e.attr("k").name == e.decoding.seq else k)
    distance = keys[None, :] - queries[:, None]
    buckets = int(e.attr("buckets"))
    base = torch.zeros_like(distance)
    if e.attr("bidirectional"):
        buckets //= 2
        base = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = -distance.clamp(max=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(e.attr("max_distance") / exact)
    large = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return base + torch.where(distance < exact, distance, large)


IMPLS: dict[str, Impl] = {"attend": attend, "mask": mask, "rope": rope, "relative_bucket": relative_bucket}
