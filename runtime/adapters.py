"""Low-rank adapters of a stage (arXiv:2106.09685): which of its parameters they are, and weights with them merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from specc.compiler.program import Adapter
from specc.runtime.pieces import WHOLE, Sharding


def factors_of(adapters: Iterable[Adapter]) -> set[str]:
    """The paths of all A and B."""
    return {path for a in adapters for path in (a.a, a.b)}


def merged(
    weights: Mapping[str, Tensor], adapters: Iterable[Adapter], shapes: Mapping[str, Sequence[int]],
    sharding: Sharding = WHOLE,
) -> dict[str, Tensor]:  # fmt: skip
    """The weights W + scale A B, and those without an adapter; the factors are no longer among them. What is
    merged has the wider dtype of the two.

    Of W there is this rank's part, of A and B the whole. `shapes` are those of whole weights. Sums are of fp64, so
    that they round alike wherever a weight is cut."""
    found = dict(weights)
    for adapter in adapters:
        a, b = found.pop(adapter.a), found.pop(adapter.b)
        if adapter.weight in found:
            w = found[adapter.weight]
            at = sharding.region(adapter.weight, shapes[adapter.weight])
            n, i = adapter.groups, adapter.groups + adapter.ins
            left, right = a[at[:i]].double(), b[(*at[:n], slice(None), *at[i:])].double()
            groups, rank = left.shape[:n], left.shape[-1]
            product = left.reshape(*groups, -1, rank) @ right.reshape(*groups, rank, -1)
            dtype = torch.promote_types(w.dtype, a.dtype)
            found[adapter.weight] = (w.double() + adapter.scale * product.reshape(w.shape)).to(dtype)
    return found
