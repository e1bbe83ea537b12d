"""What a process frees stays its own: after some steps, using it again is no page fault."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from specc.runtime.allocator import Heap, keep_memory, lay_apart
heap = Heap()
if sys.argv[1] != "plain":
    assert lay_apart() and (sys.argv[1] == "apart" or keep_memory())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(1 << 24)  # 64 MiB, freed at once
        heap.settle()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):
    faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_kept() -> None:
    kept, apart, given_back = (
        int(subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, timeout=120
        ).stdout)
        for mode in ("keep", "apart", "plain")
    )  # fmt: skip
    assert kept < 100
    assert min(apart, given_back) > 10 * kept
