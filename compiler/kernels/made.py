"""A generated file, and what is needed to compile its kernels without running them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """The sizes of a program's blocks, and its warps."""

    constants: Mapping[str, int]
    warps: int


@dataclass(frozen=True)
class Entry:
    """A kernel of a file: Triton's types of its operands, and its settings, the likeliest first. `narrow` says why its
    loads may have fewer than 128 bits."""

    kernel: str
    signature: Mapping[str, str]
    settings: tuple[Setting, ...]
    narrow: str = ""

    @property
    def kind(self) -> str:
        """What launches it."""
        return self.kernel.removesuffix("_kernel")


@dataclass(frozen=True)
class Made:
    """`name` is that of the file and of its op, and holds a hash of what they compute: equal files are one."""

    name: str
    source: str
    entries: tuple[Entry, ...]
