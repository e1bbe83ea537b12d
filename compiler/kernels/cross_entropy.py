"""Cross-entropy of rows of logits as a generated file: losses and the logits' gradient, in two walks over a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from specc.compiler.kernels.kernel import POINTERS
from specc.compiler.kernels.made import Entry, Made, Setting
from specc.compiler.kernels.template import filled
from specc.compiler.lower import placed_loss
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.loss import linear_cross_entropy
from specc.compiler.ops.loss import IGNORE
from specc.compiler.program import Body
from specc.compiler.types import size_of

SETTINGS = ((8192, 16), (4096, 8), (2048, 8), (1024, 4))
TEXT = '''\
import torch
import triton
import triton.language as tl

CONFIGS = {"forward": <SETTINGS>}  # columns of a block, and warps
CHOSEN = dict.fromkeys(CONFIGS, 0)


@triton.jit
def forward_kernel(logits_ptr, labels_ptr, count_ptr, loss_ptr, grad_ptr, BLOCK_V: tl.constexpr):
    """A row: its log-sum-exp online, then the gradient of its loss over the count of labels."""
    row = tl.program_id(0).to(tl.int64)
    label, count = tl.load(labels_ptr + row), tl.load(count_ptr)
    kept = label != <IGNORE>
    cols = tl.arange(0, BLOCK_V)
    most = tl.full([BLOCK_V], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, <WIDTH>, BLOCK_V):
        x = tl.load(logits_ptr + row * <WIDTH> + start + cols, mask=start + cols < <WIDTH>, other=float("-inf"))
        higher = tl.maximum(most, x.to(tl.float32))
        # A column that has only seen -inf has nothing to subtract.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - base) + tl.exp(x.to(tl.float32) - base)
        most = higher
    top = tl.max(most, axis=0)
    lse = top + tl.log(tl.sum(total * tl.exp(most - top), axis=0))
    at = tl.load(logits_ptr + row * <WIDTH> + tl.where(kept, label, 0)).to(tl.float32)
    tl.store(loss_ptr + row, tl.where(kept, lse - at, 0.0))
    for start in range(0, <WIDTH>, BLOCK_V):
        inside = start + cols < <WIDTH>
        x = tl.load(logits_ptr + row * <WIDTH> + start + cols, mask=inside, other=0.0).to(tl.float32)
        grad = tl.exp(x - lse) - tl.where(start + cols == label, 1.0, 0.0)
        tl.store(grad_ptr + row * <WIDTH> + start + cols, tl.where(kept, grad / count, 0.0), mask=inside)


def check(x, shape, dtype):
    assert x.shape == shape and x.dtype == dtype, f"{x.dtype}{list(x.shape)} is not {dtype}{list(shape)}"
    return x.contiguous()


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
    run = forward if logits.is_cuda or triton.knobs.runtime.interpret else forward_reference
    return run(logits, labels, count)


@forward_op.register_fake
def forward_shapes(logits, labels, count):
    return logits.new_empty((logits.shape[0],), dtype=torch.float32), logits.new_empty(logits.shape)
'''


def make_cross_entropy(vocab: int, dtype: torch.dtype, place: str) -> Made:
    """The file for rows of that many logits."""
    words = {"WIDTH": vocab, "IGNORE": IGNORE, "DTYPE": dtype, "SETTINGS": SETTINGS}
    name, source = filled("cross_entropy", TEXT, words, place)
    tensors = {"logits": POINTERS[dtype], "labels": "*i64", "count": "*i64", "loss": "*fp32", "grad": POINTERS[dtype]}
    settings = tuple(Setting({"BLOCK_V": block}, warps) for block, warps in SETTINGS)
    narrow = "no row is a multiple of 16 bytes" if vocab * dtype.itemsize % 16 else ""
    entry = Entry("forward_kernel", {f"{n}_ptr": t for n, t in tensors.items()}, settings, narrow)
    return Made(name, source, (entry,))


def losses_of(body: Body, sizes: Mapping[str, int]) -> dict[str, tuple[int, str]]:
    """The heads with their losses in a body: the vocabulary of each and its place, by its result."""
    types = body.types()
    return {
        e.outs[0]: (size_of(types[e.ins[1] or ""].dims[-1], sizes), f"{e.place.rpartition('/')[2]} {e.path}")
        for e in body.eqns if e.op == "linear_cross_entropy" and len(types[e.ins[1] or ""].dims) == 2
    }  # fmt: skip


def loss_impl(name: str) -> Impl:
    """The head and its loss, a chunk of rows at a time: the kernel takes a chunk's logits."""

    def chunk(logits: Tensor, labels: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        losses, grad = getattr(torch.ops.specc, name)(logits, labels, count)
        return losses.sum(), grad

    def call(e: Local, *xs: Tensor | None) -> Tensor:
        whole: Callable[..., Tensor] = placed_loss.linear_cross_entropy if e.spread else linear_cross_entropy
        return whole(e, *xs, chunk=chunk)

    return call
