"""The class of transformers with Liger-Kernel's kernels in it."""

from __future__ import annotations

from torch import nn

from tests.bench import peers
from tests.bench.models import Model

load = peers.load


def of(model: Model) -> tuple[nn.Module, peers.Loss]:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama()
    return peers.of(model)
