"""The grouped product as a generated file: rows sorted by group, each group times its own matrix.

The counts of groups stay on the device: a program that finds no rows of its group does nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.kernels.kernel import POINTERS
from specc.compiler.kernels.made import Entry, Made, Setting
from specc.compiler.kernels.template import filled
from specc.compiler.lower.local import Impl, Local
from specc.compiler.program import Body

TILES = ((128, 128, 64, 8), (64, 128, 32, 8), (64, 64, 32, 4), (32, 32, 32, 4), (16, 16, 16, 4))
TEXT = '''\
import torch
import triton
import triton.language as tl

CONFIGS = {  # rows, columns and summed numbers of a tile, and warps
    "forward": <TILES>,
    "weight": <TILES>,
}
CHOSEN = dict.fromkeys(CONFIGS, 0)


@triton.jit
def forward_kernel(
    rows_ptr, weight_ptr, offsets_ptr, y_ptr, n_in: tl.constexpr, n_out: tl.constexpr,
    stride_in: tl.constexpr, stride_out: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """A tile of the rows of a group times its matrix, of which in and out lie at the strides."""
    group = tl.program_id(2)
    start = tl.load(offsets_ptr + group - 1, mask=group > 0, other=0)
    end = tl.load(offsets_ptr + group)
    row = start + tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    if start + tl.program_id(0) * BLOCK_M < end:
        out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        matrix = weight_ptr + group.to(tl.int64) * n_in * n_out
        y = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for first in range(0, n_in, BLOCK_K):
            k, of = first + tl.arange(0, BLOCK_K)[None, :], first + tl.arange(0, BLOCK_K)[:, None]
            x = tl.load(rows_ptr + row * n_in + k, mask=(row < end) & (k < n_in), other=0.0)
            w = tl.load(matrix + of * stride_in + out * stride_out, mask=(of < n_in) & (out < n_out), other=0.0)
            y += tl.dot(x, w, input_precision="ieee")
        tl.store(y_ptr + row * n_out + out, y, mask=(row < end) & (out < n_out))


@triton.jit
def weight_kernel(
    rows_ptr, dy_ptr, offsets_ptr, dw_ptr, n_in: tl.constexpr, n_out: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """A tile of the gradient of a group's matrix: the sum over the group's rows, in order."""
    group = tl.program_id(2)
    start = tl.load(offsets_ptr + group - 1, mask=group > 0, other=0)
    end = tl.load(offsets_ptr + group)
    k = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    out = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    dw = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for first in range(start, end, BLOCK_K):
        row = first + tl.arange(0, BLOCK_K)[:, None]
        x = tl.load(rows_ptr + row * n_in + k[None, :], mask=(row < end) & (k[None, :] < n_in), other=0.0)
        dy = tl.load(dy_ptr + row * n_out + out, mask=(row < end) & (out < n_out), other=0.0)
        dw += tl.dot(tl.trans(x), dy, input_precision="ieee")
    place = group.to(tl.int64) * n_in * n_out + k[:, None] * n_out + out
    tl.store(dw_ptr + place, dw, mask=(k[:, None] < n_in) & (out < n_out))


<CHECK>


def forward(rows, weight, offsets, is_turned):
    """rows [M in] -> [M out] by weight [groups in out], or by its matrices turned."""
    n_groups, n_in, n_out = weight.shape
    offsets, weight = check(offsets, (n_groups,), torch.int64), check(weight, (n_groups, <IN>, <OUT>), <DTYPE>)
    stride_in, stride_out = (1, n_out) if is_turned else (n_out, 1)
    n_in, n_out = (n_out, n_in) if is_turned else (n_in, n_out)
    rows = check(rows, (rows.shape[0], n_in), <DTYPE>)
    y = torch.empty((rows.shape[0], n_out), dtype=<DTYPE>, device=rows.device).zero_()
    block_m, block_n, block_k, warps = CONFIGS["forward"][CHOSEN["forward"]]
    forward_kernel[(-(-rows.shape[0] // block_m), -(-n_out // block_n), n_groups)](
        rows, weight, offsets, y, n_in, n_out, stride_in, stride_out,
        block_m, block_n, block_k, num_warps=warps, enable_fp_fusion=False,
    )
    return y


def of_weight(rows, dy, offsets):
    """The gradient of the weight [groups in out]."""
    rows, dy = check(rows, (rows.shape[0], <IN>), <DTYPE>), check(dy, (rows.shape[0], <OUT>), <DTYPE>)
    offsets = check(offsets, offsets.shape, torch.int64)
    dw = torch.empty((offsets.shape[0], <IN>, <OUT>), dtype=<DTYPE>, device=rows.device)
    block_m, block_n, block_k, warps = CONFIGS["weight"][CHOSEN["weight"]]
    weight_kernel[(-(-<IN> // block_m), -(-<OUT> // block_n), offsets.shape[0])](
        rows, dy, offsets, dw, <IN>, <OUT>, block_m, block_n, block_k, num_warps=warps, enable_fp_fusion=False
    )
    return dw


<RUNS_HERE>


@torch.library.custom_op("specc::<NAME>", mutates_args=())
def forward_op(rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    if runs_here(rows):
        return forward(rows, weight, offsets, False)
    return torch.ops.specc.grouped_mm(rows, weight, offsets)


@forward_op.register_fake
def forward_shapes(rows, weight, offsets):
    return rows.new_empty((rows.shape[0], weight.shape[2]))


@torch.library.custom_op("specc::<NAME>_backward", mutates_args=())
def backward_op(
    rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if runs_here(rows):
        return forward(dy, weight, offsets, True), of_weight(rows, dy, offsets)
    turned = torch.ops.specc.grouped_mm(dy, weight.transpose(1, 2), offsets)
    return turned, torch.ops.specc.grouped_mm_weight(rows, dy, offsets)


@backward_op.register_fake
def backward_shapes(rows, weight, offsets, dy):
    return rows.new_empty(rows.shape), weight.new_empty(weight.shape)


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def gradients(ctx, dy):
    return *torch.ops.specc.<NAME>_backward(*ctx.saved_tensors, dy.contiguous()), None


forward_op.register_autograd(gradients, setup_context=save)
'''


@dataclass(frozen=True)
class Grouped:
    """A grouped product by the sizes of its matrices."""

    n_in: int
    n_out: int
    place: str


def make_grouped(g: Grouped, dtype: torch.dtype) -> Made:
    """The file of a grouped product."""
    words = {"IN": g.n_in, "OUT": g.n_out, "DTYPE": dtype, "TILES": TILES}
    name, source = filled("grouped", TEXT, words, g.place)
    x, o = POINTERS[dtype], "*i64"
    as_is = {"n_in": g.n_in, "n_out": g.n_out, "stride_in": g.n_out, "stride_out": 1}
    turned = {"n_in": g.n_out, "n_out": g.n_in, "stride_in": 1, "stride_out": g.n_out}
    forward = {"rows_ptr": x, "weight_ptr": x, "offsets_ptr": o, "y_ptr": x}
    weight = {"rows_ptr": x, "dy_ptr": x, "offsets_ptr": o, "dw_ptr": x}
    narrow = "" if any(n * dtype.itemsize % 16 == 0 for n in (g.n_in, g.n_out)) else "no row is a multiple of 16 bytes"
    entries = (
        Entry("forward_kernel", forward, _settings(as_is), narrow),
        Entry("forward_kernel", forward, _settings(turned), narrow),
        Entry("weight_kernel", weight, _settings({"n_in": g.n_in, "n_out": g.n_out}), narrow),
    )
    return Made(name, source, entries)


def _settings(sizes: Mapping[str, int]) -> tuple[Setting, ...]:
    return tuple(Setting({**sizes, "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, warps) for m, n, k, warps in TILES)


def grouped_of(body: Body) -> dict[str, Grouped]:
    """The grouped products of a body, by their results."""
    types, found = body.types(), dict[str, Grouped]()
    for e in body.eqns:
        if e.op == "grouped_linear":
            _, n_in, *outs = (d.size for d in types[e.ins[2] or ""].dims)
            known = [n for n in outs if n is not None]
            if n_in is not None and len(known) == len(outs):
                found[e.outs[0]] = Grouped(n_in, math.prod(known), e.stands_at)
    return found


def grouped_impl(name: str) -> Impl:
    def call(e: Local, rows: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
        matrix = weight.reshape(weight.shape[0], weight.shape[1], -1)
        y: Tensor = getattr(torch.ops.specc, name)(rows, matrix, offsets)
        return y.reshape(e.shape())

    return call
