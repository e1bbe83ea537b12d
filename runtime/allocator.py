"""The CPU's memory between steps: kept by the process, so that a step does not ask the system for it anew.

glibc gives large blocks back to the system when they are freed, and the next ones are fresh pages: two million faults
in a step of a decoder of 26 M parameters whose graphs are not compiled, a third of its time. Kept, blocks of a step's
sizes are all there after a few steps. What lives longer than a step lies apart: among the others it would leave holes
that nothing fits into. And where a step took more than all before, it left holes where the next one fits other blocks,
so that what is free goes back once more. Both together were a third of all memory in a decoder of 125 M parameters."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of mallopt(3)
APART, MANY = 1 << 20, 1 << 16  # bytes of a block that lies apart, and how many may: the system's own bound


def lay_apart() -> bool:
    """From now on large blocks are the system's own, which takes them back; says whether the C library is glibc.

    What was freed before, by a stage that is over, goes back first, else they would lie in its holes."""
    _give_back()
    return _set({M_MMAP_THRESHOLD: APART, M_MMAP_MAX: MANY, M_TRIM_THRESHOLD: -1})


def keep_memory() -> bool:
    """From now on keep what is freed, as far as the C library is glibc; says whether it is.

    What was freed before goes back first: blocks of other sizes."""
    _give_back()
    return _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1})


class _Info(ctypes.Structure):
    """What mallinfo2(3) gives; the first is the size of the heap."""

    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]


@dataclass
class Heap:
    """The heap from step to step; `largest` is what it was at most, in bytes."""

    largest: int = 0

    def settle(self) -> None:
        """A step is over."""
        ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
        if ask is None:
            return
        ask.restype = _Info
        size = int(ask().field0)
        if size > self.largest:
            self.largest = size
            _give_back()


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set(values: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(key, value) for key, value in values.items())
