"""What a rank keeps from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from specc.compiler.updating import Update


@dataclass(frozen=True)
class Kept:
    """What a rank keeps between steps: numbers of its part of each parameter, and the widths of numbers in bytes.

    `narrow` are kept in the dtype of compute; the others are as wide as the optimizer's weights, and are cast.
    `in_parts` says that parameters come together by graphs of their own (see compiler.graphs: Carry)."""

    params: Mapping[str, int]
    trainable: frozenset[str]
    update: Update
    master: int
    compute: int
    reduce: int
    ema: bool = False
    in_parts: bool = False
    moments_on_host: bool = False
    narrow: frozenset[str] = frozenset()

    def width(self, path: str) -> int:
        """Bytes of a number of the parameter as it is kept."""
        return self.compute if path in self.narrow else self.master

    @cached_property
    def cast(self) -> Mapping[str, int]:
        """The parameters that are cast for the graphs, with their numbers."""
        return {path: n for path, n in self.params.items() if self.width(path) != self.compute}
