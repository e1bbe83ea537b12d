"""Attention of compiled graphs on CPUs: C++ of our own (attention.cpp), built for this processor when first wanted.

On an AMD EPYC with AVX2, two threads, fp32, heads of 64, it does 1.8 times the work of torch's kernel a second where
half of the keys are seen (8 x 8 heads of 512), and 15 times in a backward in bf16, which torch multiplies number by
number on CPUs without such units. Where all keys are seen, a block of a ViT or DiT is one to three percent faster."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx

from specc.compiler.graphs import node_type
from specc.compiler.lower.attend import (
    attention,
    attention_backward,
    fake_attention,
    fake_attention_backward,
    rows_of,
)  # fmt: skip
from specc.compiler.lower.own import own_op
from specc.runtime.cache import has_caches, kept, key, made_beside, settings

SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = (
    "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=c++17",
    "-shared", "-fPIC",
)  # fmt: skip
NAME = "attention.so"
DTYPES = ("float32", "bfloat16")


def is_available() -> bool:
    """Whether the source is written for vectors like this processor's."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def with_own_attention(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with the ops of compiler.lower.attend replaced, if that can be."""
    for node in gm.graph.nodes:
        if node.target in OWN and is_available() and _fits(node) and _is_built():
            node.target = OWN[node.target]
    gm.recompile()
    return gm


def _fits(node: fx.Node) -> bool:
    """A thread takes whole heads: too few of them would leave threads idle."""
    kinds = [node_type(x) for x in node.args[:3] if isinstance(x, fx.Node)]
    scale, k = cast("float", node.args[-1]), kinds[1][1]
    is_some = kinds[0][0] in DTYPES and scale > 0 and all(math.prod(shape) for _, shape, _ in kinds)
    return is_some and k[0] * k[2] >= torch.get_num_threads()


@cache
def _is_built() -> bool:
    try:
        library()
    except (OSError, subprocess.CalledProcessError) as e:
        warnings.warn(f"attention is not built for this processor: {getattr(e, 'stderr', None) or e}", stacklevel=2)
        return False
    return True


@cache
def library() -> ctypes.CDLL:
    """The functions of attention.cpp; raises OSError or CalledProcessError where they cannot be built."""
    compiler = settings().get("CXX", "g++")
    folder = kept() / key(compiler, FLAGS, SOURCE.read_bytes())
    return (_load(folder) if has_caches() else None) or _build(compiler, folder)


def _load(folder: Path) -> ctypes.CDLL | None:
    try:
        made = ctypes.CDLL(str(folder / NAME))
    except OSError:
        return None
    with suppress(OSError):
        os.utime(folder)  # this is in use
    return made


def _build(compiler: str, folder: Path) -> ctypes.CDLL:
    with made_beside(folder, lambda: _load(folder) is not None) as begun:
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(begun / NAME)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return ctypes.CDLL(str(begun / NAME))


@own_op("own_attention", fake_attention, "cpu")
def own_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As compiler.lower.attend.attention."""
    q, k, v = (rows_of(x) for x in (q, k, v))
    mask = None if mask is None else rows_of(mask)
    y, sums = fake_attention(q, k, v, mask, causal, scale)
    call = _call(q, k, v, y, y, mask, causal)
    function = getattr(library(), f"{_name(q)}_forward")
    function(call, *map(_at, (q, k, v, mask)), ctypes.c_float(scale), _at(y), _at(sums))
    return y, sums


@own_op("own_attention_backward", fake_attention_backward, "cpu")
def own_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, y: Tensor, sums: Tensor, dy: Tensor, causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As compiler.lower.attend.attention_backward."""
    q, k, v, y, dy = (rows_of(x) for x in (q, k, v, y, dy))
    mask = None if mask is None else rows_of(mask)
    grads = fake_attention_backward(q, k, v, mask, y, sums, dy, causal, scale)
    call = _call(q, k, v, y, dy, mask, causal)
    sums = sums.contiguous()
    function = getattr(library(), f"{_name(q)}_backward")
    function(call, *map(_at, (dy, q, k, v, mask, y, sums)), ctypes.c_float(scale), *map(_at, grads))
    return grads


OWN = {attention: own_attention, attention_backward: own_attention_backward}


def _call(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor, mask: Tensor | None, causal: bool
) -> ctypes.Array[ctypes.c_int64]:
    """The struct of that name in attention.cpp."""
    b, s, h, e = q.shape
    numbers = [b, h, k.shape[2], s, k.shape[1], e, v.shape[3], torch.get_num_threads(), int(causal)]
    for x in (q, k, v, y, dy):
        numbers += x.stride()[:3]
    numbers += (0, 0) if mask is None else (mask.stride(0) if len(mask) > 1 else 0, mask.stride(1))
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _at(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr() if x is not None else None)
