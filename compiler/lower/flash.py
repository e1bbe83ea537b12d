"""torch's attention for devices that are not the one a graph was lowered on: with a bias, in decoding, in ops of
users. All other is compiler.lower.attend.

torch lowers attention on a CPU to a kernel that is the CPU's alone. Graphs that are loaded for a GPU call these ops in
its stead: they ask torch for what is fast there. They are not custom ops of torch's decorator, inside of which autograd
is shut off: the backward is that of whatever kernel torch takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

LIBRARY: Any = torch.library.Library("specc", "FRAGMENT")  # type: ignore[no-untyped-call]
TAIL = "float dropout_p=0.0, bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None"
LIBRARY.define(f"flash_attention(Tensor q, Tensor k, Tensor v, {TAIL}) -> (Tensor, Tensor)")
LIBRARY.define(
    "flash_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, "
    f"{TAIL}) -> (Tensor, Tensor, Tensor)"
)


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """q [B H S E], k [B H T E], v [B H T F], a mask that is added to the scores -> [B H S F], and a place [B H S] for
    sums that the backward makes anew."""
    out = scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    return _as_lowered(out), _sums(q)


def flash_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dropout_p: float = 0.0,
    is_causal: bool = False, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v. The forward runs again, so that it is torch's own pair of kernels that meets."""
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        again = scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
        dq, dk, dv = torch.autograd.grad(again, (q, k, v), grad)
    return _as_lowered(dq), _as_lowered(dk), _as_lowered(dv)


def _fake(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _empty(q, v.shape[3]), _sums(q)


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dropout_p: float = 0.0,
    is_causal: bool = False, *, attn_mask: Tensor | None = None, scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty(q, q.shape[3]), _empty(k, k.shape[3]), _empty(v, v.shape[3])


def _as_lowered(x: Tensor) -> Tensor:
    """[B H S E] in the order of memory that graphs were lowered with: that of [B S H E]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _empty(x: Tensor, width: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], width).transpose(1, 2)


def _sums(q: Tensor) -> Tensor:
    """fp32 [B H S], in the order of [B S H]."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32).transpose(1, 2)


LIBRARY.impl("flash_attention", flash_attention, "CompositeExplicitAutograd")
LIBRARY.impl("flash_attention_backward", flash_attention_backward, "CompositeExplicitAutograd")
torch.library.register_fake("specc::flash_attention", _fake)
torch.library.register_fake("specc::flash_attention_backward", _fake_backward)
