"""The CPU's memory between steps: kept by the process, so that a step does not ask the system for it anew.

glibc gives large blocks back to the system when they are freed, and the next step pays for fresh pages: a decoder of
26 M parameters 80,000 page faults a step. Kept, blocks of a step's sizes are all there after a few steps."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def release_memory() -> None:
    """Give what is free back after all: what comes next uses blocks of other sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_memory() -> bool:
    """Keep what is freed, as far as the C library is glibc; says whether it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
