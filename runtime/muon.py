"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum whose matrices are made orthogonal.

On a mesh the ranks that have parts of matrices exchange them, so that each makes some whole matrices orthogonal: an
all-to-all there and one back, and no matrix is worked on twice. Along axes that split none all ranks do the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.lower.collectives import all_to_all
from specc.compiler.moments import Matrix, together
from specc.compiler.placement.types import Axis
from specc.runtime.adamw import fitted
from specc.runtime.pieces import WHOLE, Sharding
from specc.spec.optimizer import Muon

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic iteration, chosen for a steep slope at zero
EPS = 1e-7  # the least norm that a matrix is divided by


@torch.no_grad()
def orthogonal(x: Tensor, steps: int) -> Tensor:
    """Near U V' of each matrix U S V' of x [n, rows, columns], which is overwritten: singular values come to 0.7 to 1.2
    by iterations of Newton and Schulz."""
    x.div_(x.norm(dim=(-2, -1), keepdim=True).clamp_(min=EPS))
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    for _ in range(steps):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, gram, x, beta=A)
    return x.mT if is_tall else x


def rate(adjust: str, rows: int, columns: int) -> float:
    """What the rate of a matrix is multiplied by: so that its update has the mean square of AdamW's (arXiv:2502.16982,
    eq. 4), or as large a norm for all shapes (Jordan)."""
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


@dataclass(frozen=True)
class Bucket:
    """Parameters of one shape, whose matrices lie alike; `splits` are the axes that cut these, outermost first, and the
    dims that they cut. `rate` is the factor of their shape."""

    paths: tuple[str, ...]
    matrix: Matrix
    splits: tuple[tuple[Axis, int], ...]
    rate: float

    @property
    def ranks(self) -> int:
        """Those that share a matrix."""
        return math.prod(axis.size for axis, _ in self.splits)


def buckets(
    spec: Muon, params: Mapping[str, Tensor], matrices: Mapping[str, Matrix], sharding: Sharding = WHOLE
) -> list[Bucket]:  # fmt: skip
    """The parameters by shape and layout, each bucket with as many as are made orthogonal at once."""
    found: dict[tuple[object, ...], list[str]] = {}
    for path, p in params.items():
        splits = cuts(matrices[path], path, p.ndim, sharding)
        found.setdefault((sharding.shape(path, p.shape), matrices[path], splits, p.shape), []).append(path)
    return [b for paths in found.values() for b in _parted(spec, paths, params, matrices[paths[0]], sharding)]


def _parted(
    spec: Muon, paths: Sequence[str], params: Mapping[str, Tensor], matrix: Matrix, sharding: Sharding
) -> Iterator[Bucket]:
    p = params[paths[0]]
    _, rows, columns = matrix.sizes(sharding.shape(paths[0], p.shape))
    splits = cuts(matrix, paths[0], p.ndim, sharding)
    size = together(p.numel(), math.prod(axis.size for axis, _ in splits))
    for i in range(0, len(paths), size):
        yield Bucket(tuple(paths[i : i + size]), matrix, splits, rate(spec.adjust_lr, rows, columns))


def cuts(matrix: Matrix, path: str, n_dims: int, sharding: Sharding) -> tuple[tuple[Axis, int], ...]:
    """The axes that cut the matrices of a parameter; those that part matrices from each other do not."""
    layout = sharding.layout(path, n_dims)
    pairs = zip(layout, sharding.mesh.axes, strict=True)
    return tuple((axis, at.dim) for at, axis in pairs if at.kind == "S" and at.dim not in matrix.alike)


@torch.no_grad()
def muon(
    spec: Muon, bucket: Bucket, params: Sequence[Tensor], grads: Sequence[Tensor], momenta: Sequence[Tensor],
    lr: float, weight_decay: float, dtype: torch.dtype,
) -> None:  # fmt: skip
    """Update the parameters of a bucket in place, with products in `dtype`; gradients are overwritten."""
    changes = fitted(grads, params)
    torch._foreach_lerp_(list(momenta), changes, 1 - spec.momentum)
    if spec.nesterov:
        torch._foreach_lerp_(changes, list(momenta), spec.momentum)
    made = whole_orthogonal(changes if spec.nesterov else momenta, bucket, spec.steps, dtype)
    torch._foreach_mul_(list(params), 1 - lr * weight_decay)
    for p, x in zip(params, made, strict=False):
        p.add_(x, alpha=-lr * bucket.rate)


def whole_orthogonal(parts: Sequence[Tensor], bucket: Bucket, steps: int, dtype: torch.dtype) -> Tensor:
    """This rank's parts of the orthogonal matrices, stacked, from its parts of the tensors; zeros may stand behind."""
    x = parts[0].new_zeros(-(-len(parts) // bucket.ranks) * bucket.ranks, *parts[0].shape, dtype=dtype)
    for i, part in enumerate(parts):
        x[i].copy_(part)
    for axis, dim in reversed(bucket.splits):
        x = all_to_all(x, dim + 1, 0, axis)
    m = bucket.matrix
    order = (0, *(d + 1 for dims in (m.alike, m.ins, m.outs) for d in dims))
    shape = x.permute(order).shape
    columns = math.prod(shape[len(shape) - len(m.outs) :])
    rows = math.prod(shape[1 + len(m.alike) :]) // columns
    made = orthogonal(x.permute(order).reshape(-1, rows, columns), steps).reshape(shape)
    x = made.permute([order.index(d) for d in range(len(order))])
    for axis, dim in bucket.splits:
        x = all_to_all(x, 0, dim + 1, axis)
    return x
