"""Rearrangement of a tensor between a checkpoint's layout and ours, by a pattern `(h e) d -> d h e`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from specc.compiler.ops.shape import groups


@dataclass(frozen=True)
class Layout:
    """Their dims as groups of letters, the order of the letters in ours, and our shape."""

    left: tuple[tuple[int, ...], ...]  # sizes of the letters of each of their dims
    order: tuple[int, ...]  # for each of our letters its place among theirs
    ours: tuple[int, ...]

    @property
    def theirs(self) -> tuple[int, ...]:
        return tuple(math.prod(g) for g in self.left)

    def to_ours(self, t: Tensor) -> Tensor:
        letters = [n for g in self.left for n in g]
        return t.reshape(letters).permute(self.order).reshape(self.ours)

    def to_theirs(self, t: Tensor) -> Tensor:
        letters = [n for g in self.left for n in g]
        back = sorted(range(len(self.order)), key=lambda i: self.order[i])
        return t.reshape([letters[i] for i in self.order]).permute(back).reshape(self.theirs)


def layout(pattern: str | None, ours: tuple[int, ...]) -> Layout:
    """The layout of a parameter of our shape; raises ValueError if the pattern does not fit it."""
    if pattern is None:
        return Layout(tuple((n,) for n in ours), tuple(range(len(ours))), ours)
    left, _, right = pattern.partition("->")
    words = right.split()
    if len(words) != len(ours):
        raise ValueError(f"the pattern '{pattern}' has {len(words)} dims on its right, the parameter has {len(ours)}")
    sizes = dict(zip(words, ours, strict=True)) | {"1": 1}
    named = [w for w in words if w != "1"]
    theirs = [w for g in groups(left) for w in g if w != "1"]
    if sorted(named) != sorted(theirs) or len(set(named)) < len(named):
        raise ValueError(f"the two sides of '{pattern}' differ in their letters")
    split = tuple(tuple(sizes[w] for w in g if w != "1") for g in groups(left))
    return Layout(split, tuple(theirs.index(w) for w in named), ours)
