"""What products and means do where a dim that they sum over is split, and tables whose rows are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specc.compiler.lower import linear, norm, pointwise
from specc.compiler.lower.collectives import as_sum
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.spread import Spread


def with_bias(impl: Impl, bias: int) -> Impl:
    """A product whose bias, operand `bias`, is added once where the result is a sum over ranks."""

    def run(e: Local, *xs: Tensor | None) -> Tensor:
        s, b = spread(e), xs[bias] if len(xs) > bias else None
        if b is not None:
            layout = s.placed.takes(bias)
            assert layout is not None
            for a in s.summed():
                if layout[a].kind != "P":
                    b = as_sum(b, layout[a], *s.axis(a))
        result = impl(e, *xs[:bias], *([b] if len(xs) > bias else []), *xs[bias + 1 :])
        assert isinstance(result, Tensor)
        return result

    return run


def spread(e: Local) -> Spread:
    assert e.spread is not None
    return e.spread


def mean(e: Local, x: Tensor) -> Tensor:
    """The parts of a mean: those of the ranks are summed."""
    n = math.prod(
        spread(e).mesh.axes[a].size for a, s in enumerate(spread(e).placed.strategies) if s.name[:4] == "sum:"
    )
    y = pointwise.mean(e, x)
    return y if n == 1 else y / n


def embedding(e: Local, index: Tensor, weight: Tensor) -> Tensor:
    """With split rows, zeros for the tokens whose row is on another rank."""
    if not spread(e).using("rows"):
        return linear.embedding(e, index, weight)
    at, here = own_entries(index, spread(e).places_of_operand(1, 0))
    y = linear.embedding(e, at, weight)
    here = here.reshape(*here.shape, *[1] * (y.ndim - here.ndim))
    return torch.where(here, y, y.new_zeros(()))


def own_entries(index: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers as places in this rank's part (0 for those of other ranks), and which are of this rank."""
    at = index - places[0]
    here = (at >= 0) & (at < places.shape[0])
    return torch.where(here, at, 0), here


def dropout(e: Local, x: Tensor, key: Tensor) -> Tensor:
    """Elements are counted in the whole, so that the mask does not depend on the mesh."""
    s, element = spread(e), torch.zeros((), dtype=torch.int64)
    whole = s.placed.eqn.types[0].shape(s.setting.sizes)
    for i in range(1, x.ndim):
        element = element[..., None] * whole[i] + e.places(i)
    return norm.dropout(e, x, key, element)


IMPLS: dict[str, Impl] = {
    "linear": with_bias(linear.linear, 2), "routed_linear": with_bias(linear.routed_linear, 3),
    "conv": with_bias(linear.conv, 2), "mean": mean, "embedding": embedding, "dropout": dropout,
}  # fmt: skip
