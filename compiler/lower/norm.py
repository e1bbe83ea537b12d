"""Implementations: normalisation, softmax and dropout; all compute in fp32 or wider."""

from __future__ import annotations

from hashlib import blake2b

import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.lower.local import Impl, Local, wide


def rms_norm(e: Local, x: Tensor, weight: Tensor | None = None) -> Tensor:
    x32 = wide(x)
    y = (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + e.attr("eps"))).to(x.dtype)
    return y if weight is None else y * weight


def layer_norm(e: Local, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    shared = (weight is None or weight.ndim == 1) and (bias is None or bias.ndim == 1)
    if shared:
        return F.layer_norm(x, x.shape[-1:], weight, bias, e.attr("eps"))
    y = F.layer_norm(x, x.shape[-1:], eps=e.attr("eps"))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def group_norm(e: Local, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, e.attr("groups"), weight, bias, e.attr("eps"))


def softmax(e: Local, x: Tensor) -> Tensor:
    return wide(x).softmax(-1).to(x.dtype)


def dropout(e: Local, x: Tensor, key: Tensor, element: Tensor | None = None) -> Tensor:
    """The mask is a hash of (the sample's key, the step, the element), so it does not depend on the batch.

    `element` numbers the elements of a sample, if not in order. A negative key drops nothing."""
    p = float(e.attr("p"))
    if p == 0.0:
        return x
    step = f"{e.eqn.path} {e.eqn.outs[0]}"  # steps without parameters may share a path
    site = int.from_bytes(blake2b(step.encode(), digest_size=7).digest(), "little")
    if element is None:
        element = torch.arange(x[0].numel(), device=x.device).reshape(x.shape[1:])
    key = key.reshape(-1, *[1] * (x.ndim - 1))
    bits = _mix(_mix(key ^ site) ^ element)
    keep = (bits >> 11) & 0x1FFFFF
    return torch.where(key < 0, x, torch.where(keep >= int(p * 0x200000), x / (1.0 - p), 0.0))


def _mix(x: Tensor) -> Tensor:
    """Two rounds of xor-shift-multiply on int64, wrapping."""
    x = (x ^ (x >> 31)) * 0x7FB5D329728EA185
    x = (x ^ (x >> 27)) * -0x7E25210B43D22BB3
    return x ^ (x >> 33)


IMPLS: dict[str, Impl] = {
    "rms_norm": rms_norm, "layer_norm": layer_norm, "group_norm": group_norm, "softmax": softmax, "dropout": dropout,
}  # fmt: skip
