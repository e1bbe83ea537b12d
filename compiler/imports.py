"""What is not to be imported: torch imports Triton wherever it is installed, 72 MB of a process, though a processor's
code needs nothing of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

IS_FOR_GPUS = bool(torch.version.cuda or torch.version.hip or torch.version.xpu)  # this torch is, whatever is here


@contextmanager
def without_triton() -> Iterator[None]:
    """Inside of this Triton is not found, unless torch is built for GPUs or it has been imported already."""
    if IS_FOR_GPUS or "triton" in sys.modules:
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop("triton", None)
