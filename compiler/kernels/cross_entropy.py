"""Cross-entropy of rows of logits as a generated file: losses and the logits' gradient, in two walks over a row.

Where ranks have parts of the vocabulary, they exchange terms between the walks: each walk is a launch of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.kernels.cut import PLACED
from specc.compiler.kernels.kernel import POINTERS
from specc.compiler.kernels.made import Entry, Made, Setting
from specc.compiler.kernels.template import filled
from specc.compiler.lower import placed_loss
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.loss import linear_cross_entropy
from specc.compiler.lower.placed_loss import Part
from specc.compiler.ops.loss import IGNORE
from specc.compiler.program import Body
from specc.compiler.types import size_of

SETTINGS = ((8192, 16), (4096, 8), (2048, 8), (1024, 4))
WALKS = '''\
import torch
import triton
import triton.language as tl

# Columns of a block, and warps.
CONFIGS = dict.fromkeys(<KINDS>, <SETTINGS>)
CHOSEN = dict.fromkeys(CONFIGS, 0)


@triton.jit
def log_sum_exp(x_ptr, BLOCK_V: tl.constexpr):
    """Of a row, online."""
    cols = tl.arange(0, BLOCK_V)
    most = tl.full([BLOCK_V], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, <WIDTH>, BLOCK_V):
        x = tl.load(x_ptr + start + cols, mask=start + cols < <WIDTH>, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, x)
        # What has only seen -inf has nothing to subtract: a column here, and the row in the end.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - base) + tl.exp(x - base)
        most = higher
    top = tl.max(most, axis=0)
    base = tl.where(top == float("-inf"), 0.0, top)
    return base + tl.log(tl.sum(total * tl.exp(most - base), axis=0))


@triton.jit
def store_gradient(x_ptr, grad_ptr, at, kept, lse, count, BLOCK_V: tl.constexpr):
    """softmax - onehot of a row, over the count of labels; `at` is the label's column, if it is one of these."""
    cols = tl.arange(0, BLOCK_V)
    for start in range(0, <WIDTH>, BLOCK_V):
        inside = start + cols < <WIDTH>
        x = tl.load(x_ptr + start + cols, mask=inside, other=0.0).to(tl.float32)
        grad = tl.exp(x - lse) - tl.where(start + cols == at, 1.0, 0.0)
        tl.store(grad_ptr + start + cols, tl.where(kept, grad / count, 0.0), mask=inside)


<CHECK>


<RUNS_HERE>


'''
WHOLE = '''\
@triton.jit
def forward_kernel(logits_ptr, labels_ptr, count_ptr, loss_ptr, grad_ptr, BLOCK_V: tl.constexpr):
    """A row: its loss, and the gradient of that over the count of labels."""
    row = tl.program_id(0).to(tl.int64)
    label, count = tl.load(labels_ptr + row), tl.load(count_ptr)
    kept = label != <IGNORE>
    x_ptr = logits_ptr + row * <WIDTH>
    lse = log_sum_exp(x_ptr, BLOCK_V)
    picked = tl.load(x_ptr + tl.where(kept, label, 0)).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(kept, lse - picked, 0.0))
    store_gradient(x_ptr, grad_ptr + row * <WIDTH>, label, kept, lse, count, BLOCK_V)


def forward(logits, labels, count):
    block, warps = CONFIGS["forward"][CHOSEN["forward"]]
    n_rows = logits.shape[0]
    logits = check(logits, (n_rows, <WIDTH>), <DTYPE>)
    labels, count = check(labels, (n_rows,), torch.int64), check(count, (), torch.int64)
    losses = torch.empty((n_rows,), dtype=torch.float32, device=logits.device)
    grad = torch.empty((n_rows, <WIDTH>), dtype=<DTYPE>, device=logits.device)
    forward_kernel[(n_rows,)](
        logits, labels, count, losses, grad, BLOCK_V=block, num_warps=warps, enable_fp_fusion=False
    )
    return losses, grad


def forward_reference(logits, labels, count):
    x = logits.float()
    lse = torch.logsumexp(x, -1, keepdim=True)
    kept, at = (labels != <IGNORE>)[:, None], labels.clamp(min=0)[:, None]
    losses = torch.where(kept, lse - x.gather(1, at), 0.0).squeeze(1)
    grad = torch.where(kept, (x - lse).exp(), 0.0).scatter_add(1, at, torch.where(kept, -1.0, 0.0))
    return losses, (grad / count).to(logits.dtype)


@torch.library.custom_op("specc::<NAME>", mutates_args=())
def forward_op(
    logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return (forward if runs_here(logits) else forward_reference)(logits, labels, count)


@forward_op.register_fake
def forward_shapes(logits, labels, count):
    return logits.new_empty((logits.shape[0],), dtype=torch.float32), logits.new_empty(logits.shape)
'''
PART = '''\
@triton.jit
def terms_kernel(logits_ptr, labels_ptr, first_ptr, terms_ptr, BLOCK_V: tl.constexpr):
    """A row's log-sum-exp over this rank's part of the vocabulary, and the label's logit, or 0 if it is elsewhere."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.load(labels_ptr + row) - tl.load(first_ptr)
    x_ptr = logits_ptr + row * <WIDTH>
    tl.store(terms_ptr + row, log_sum_exp(x_ptr, BLOCK_V))
    picked = tl.load(x_ptr + at, mask=(at >= 0) & (at < <WIDTH>), other=0.0).to(tl.float32)
    tl.store(terms_ptr + tl.num_programs(0) + row, picked)


@triton.jit
def gradient_kernel(logits_ptr, labels_ptr, first_ptr, lse_ptr, count_ptr, grad_ptr, BLOCK_V: tl.constexpr):
    """The gradient of a row's loss over the count of labels, with the log-sum-exp of all ranks."""
    row = tl.program_id(0).to(tl.int64)
    label, lse, count = tl.load(labels_ptr + row), tl.load(lse_ptr + row), tl.load(count_ptr)
    at, kept = label - tl.load(first_ptr), label != <IGNORE>
    store_gradient(logits_ptr + row * <WIDTH>, grad_ptr + row * <WIDTH>, at, kept, lse, count, BLOCK_V)


def terms(logits, labels, first):
    """[2 rows]: what ranks exchange; `first` is the number of this rank's first entry."""
    block, warps = CONFIGS["terms"][CHOSEN["terms"]]
    n_rows = logits.shape[0]
    logits = check(logits, (n_rows, <WIDTH>), <DTYPE>)
    labels, first = check(labels, (n_rows,), torch.int64), check(first, (), torch.int64)
    out = torch.empty((2, n_rows), dtype=torch.float32, device=logits.device)
    terms_kernel[(n_rows,)](logits, labels, first, out, BLOCK_V=block, num_warps=warps, enable_fp_fusion=False)
    return out


def gradient(logits, labels, first, lse, count):
    block, warps = CONFIGS["gradient"][CHOSEN["gradient"]]
    n_rows = logits.shape[0]
    logits, lse = check(logits, (n_rows, <WIDTH>), <DTYPE>), check(lse, (n_rows,), torch.float32)
    labels = check(labels, (n_rows,), torch.int64)
    first, count = check(first, (), torch.int64), check(count, (), torch.int64)
    grad = torch.empty((n_rows, <WIDTH>), dtype=<DTYPE>, device=logits.device)
    gradient_kernel[(n_rows,)](
        logits, labels, first, lse, count, grad, BLOCK_V=block, num_warps=warps, enable_fp_fusion=False
    )
    return grad


def places(labels, first):
    """The labels' columns (0 for those elsewhere), and which are here."""
    at = labels - first
    here = (at >= 0) & (at < <WIDTH>)
    return torch.where(here, at, 0)[:, None], here[:, None]


def terms_reference(logits, labels, first):
    x, (at, here) = logits.float(), places(labels, first)
    return torch.stack([torch.logsumexp(x, -1), torch.where(here, x.gather(1, at), 0.0)[:, 0]])


def gradient_reference(logits, labels, first, lse, count):
    at, here = places(labels, first)
    kept = (labels != <IGNORE>)[:, None]
    grad = torch.where(kept, (logits.float() - lse[:, None]).exp(), 0.0)
    return (grad.scatter_add(1, at, torch.where(here, -1.0, 0.0)) / count).to(logits.dtype)


@torch.library.custom_op("specc::<NAME>", mutates_args=())
def terms_op(logits: torch.Tensor, labels: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    return (terms if runs_here(logits) else terms_reference)(logits, labels, first)


@terms_op.register_fake
def terms_shapes(logits, labels, first):
    return logits.new_empty((2, logits.shape[0]), dtype=torch.float32)


@torch.library.custom_op("specc::<NAME>_gradient", mutates_args=())
def gradient_op(
    logits: torch.Tensor, labels: torch.Tensor, first: torch.Tensor, lse: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    return (gradient if runs_here(logits) else gradient_reference)(logits, labels, first, lse, count)


@gradient_op.register_fake
def gradient_shapes(logits, labels, first, lse, count):
    return logits.new_empty(logits.shape)
'''


@dataclass(frozen=True)
class Head:
    """A head with its loss: how many entries of the vocabulary a row has, and whether other ranks have more."""

    vocab: int
    is_part: bool
    place: str


def make_cross_entropy(h: Head, dtype: torch.dtype) -> Made:
    """The file for rows of that many logits."""
    kernels = _part_operands(POINTERS[dtype]) if h.is_part else _whole_operands(POINTERS[dtype])
    words = {"WIDTH": h.vocab, "IGNORE": IGNORE, "DTYPE": dtype, "SETTINGS": SETTINGS, "KINDS": json.dumps([*kernels])}
    kind, text = ("cross_entropy_part", WALKS + PART) if h.is_part else ("cross_entropy", WALKS + WHOLE)
    name, source = filled(kind, text, words, h.place)
    settings = tuple(Setting({"BLOCK_V": block}, warps) for block, warps in SETTINGS)
    narrow = "no row is a multiple of 16 bytes" if h.vocab * dtype.itemsize % 16 else ""
    entries = tuple(
        Entry(f"{k}_kernel", {f"{n}_ptr": t for n, t in of.items()}, settings, narrow) for k, of in kernels.items()
    )
    return Made(name, source, entries)


def _whole_operands(x: str) -> dict[str, dict[str, str]]:
    """Of each kernel, with logits of a type."""
    return {"forward": {"logits": x, "labels": "*i64", "count": "*i64", "loss": "*fp32", "grad": x}}


def _part_operands(x: str) -> dict[str, dict[str, str]]:
    rows = {"logits": x, "labels": "*i64", "first": "*i64"}
    return {"terms": rows | {"terms": "*fp32"}, "gradient": rows | {"lse": "*fp32", "count": "*i64", "grad": x}}


def losses_of(body: Body, sizes: Mapping[str, int]) -> dict[str, Head]:
    """The heads with their losses in a body, by their results. One that looks beyond its rank has a part of the
    vocabulary."""
    types, found = body.types(), dict[str, Head]()
    for e in body.eqns:
        if e.op.removeprefix(PLACED) == "linear_cross_entropy":
            dims = types[e.ins[1] or ""].dims
            if len(dims) == 2:
                found[e.outs[0]] = Head(size_of(dims[-1], sizes), e.op.startswith(PLACED), e.stands_at)
    return found


def loss_impl(name: str) -> Impl:
    """The head and its loss, a chunk of rows at a time: the kernels take a chunk's logits."""

    def chunk(logits: Tensor, labels: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        losses, grad = getattr(torch.ops.specc, name)(logits, labels, count)
        return losses.sum(), grad

    def call(e: Local, x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
        if e.spread is None:
            return linear_cross_entropy(e, x, weight, labels, bias, chunk)
        return placed_loss.linear_cross_entropy(e, x, weight, labels, bias, chunk, part_of(name))

    return call


def part_of(name: str) -> Part:
    """What a rank does with its part of the vocabulary, by the kernels of a file."""

    def terms(logits: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        found: Tensor = getattr(torch.ops.specc, name)(logits, labels, places[0])
        return found

    def gradient(logits: Tensor, labels: Tensor, places: Tensor, log_z: Tensor, count: Tensor) -> Tensor:
        found: Tensor = getattr(torch.ops.specc, f"{name}_gradient")(logits, labels, places[0], log_z, count)
        return found

    return Part(terms, gradient)
