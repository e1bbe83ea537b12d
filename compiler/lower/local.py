"""What an op's implementation sees of its equation, and the table's signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specc.compiler.lower.decode import Decoding
from specc.compiler.lower.spread import Spread
from specc.compiler.program import Eqn
from specc.compiler.types import Dim, TensorType, places, size_of

Result = Tensor | tuple[Tensor, ...]
Impl = Callable[..., Result]


@dataclass(frozen=True)
class Local:
    """An equation with the sizes of its dims bound.

    `decoding` is the state of incremental decoding, if it is that. On a mesh all dims have the sizes of this rank's
    parts, and `spread` says where these lie."""

    eqn: Eqn
    ins: tuple[TensorType | None, ...]
    sizes: Mapping[str, int]
    decoding: Decoding | None = None
    spread: Spread | None = None

    def attr(self, name: str, default: Any = None) -> Any:
        return self.eqn.attrs.get(name, default)

    def size(self, dim: Dim) -> int:
        return size_of(dim, self.sizes)

    def dims(self, i: int) -> tuple[Dim, ...]:
        t = self.ins[i]
        assert t is not None
        return t.dims

    @property
    def out(self) -> TensorType:
        return self.eqn.types[0]

    def shape(self, j: int = 0) -> tuple[int, ...]:
        return self.eqn.types[j].shape(self.sizes)

    def places(self, i: int) -> Tensor:
        """Where the entries along dim i of the first result stand in the whole."""
        return self.spread.places_of_result(i) if self.spread else torch.arange(self.shape()[i])

    def axis(self, i: int, dim: Dim) -> int:
        return next(n for n, d in enumerate(self.dims(i)) if d.name == dim.name)


def align(x: Tensor, have: tuple[Dim, ...], want: tuple[Dim, ...]) -> Tensor:
    """The tensor with its dims in the wanted order, length 1 where it lacks one."""
    at = [i for i in places(have, want) if i is not None]
    assert len(at) == len(have), f"{have} does not fit into {want}"
    if at == list(range(len(want) - len(have), len(want))):
        return x  # broadcasting puts the missing leading dims in
    x = x.permute(sorted(range(len(have)), key=lambda i: at[i]))
    shape = iter(x.shape)
    return x.reshape([next(shape) if i in at else 1 for i in range(len(want))])


def wide(x: Tensor) -> Tensor:
    """At least fp32: what norms, softmax and losses compute in."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
