"""Makes Triton's interpreter compute bf16 as a GPU does, and puts guard bands around what kernels read and write.

The interpreter keeps bf16 as 16 bits of an integer, which it truncates to instead of rounding, and multiplies as they
are; https://github.com/triton-lang/triton/pull/10945 would have mended that."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

GUARD = 64  # numbers on each side


def round_bf16() -> None:
    """Round to the nearest even in casts to bf16, and multiply bf16 as fp32."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounded(self: Any, src: Any, dst: Any) -> Any:
        if src.dtype.scalar != tl.float32 or dst.scalar != tl.bfloat16:
            return cast(self, src, dst)
        exact = np.ascontiguousarray(src.data, dtype=np.float32)
        bits = exact.view(np.uint32)
        near = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return TensorHandle(np.where(np.isnan(exact), np.uint16(0x7FC0), near).reshape(src.data.shape), tl.bfloat16)

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def product(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = rounded, product
    for name in ("create_fp_trunc", "create_fp_to_fp"):
        if hasattr(InterpreterBuilder, name):
            setattr(InterpreterBuilder, name, lambda self, src, dst, *_: rounded(self, src, dst))


class Guarded:
    """`torch` for the launchers of a file: what `empty` gives lies between guard bands, and is NaN until written."""

    def __init__(self) -> None:
        self.bands: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.guarded(torch.full(shape, float("nan") if dtype.is_floating_point else 77, dtype=dtype))

    def guarded(self, x: Tensor) -> Tensor:
        """A copy between bands."""
        fill = float("nan") if x.is_floating_point() else 77
        band = torch.full((GUARD,), fill, dtype=torch.float64).to(x.dtype)
        held = torch.cat([band, x.flatten(), band])
        self.bands += [held[:GUARD], held[-GUARD:]]
        return held[GUARD:-GUARD].view(x.shape)

    def untouched(self) -> bool:
        """Whether all bands are as they were."""
        return all(bool((b != b).all() if b.is_floating_point() else (b == b[0]).all()) for b in self.bands)
