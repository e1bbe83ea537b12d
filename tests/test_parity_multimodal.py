"""The tracers with images and with experts equal transformers, diffusers and a plain reference, gradients included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parity.case import run_case, tables
from tests.parity.cases_multimodal import CASES, write

# The smaller size in fp64 alone: what is wrong there in fp32 shows at the larger one or in fp64.
KINDS = [(torch.float32, 1), (torch.float64, 0), (torch.float64, 1)]


@pytest.mark.parametrize(("dtype", "size"), KINDS, ids=["fp32-1", "fp64-0", "fp64-1"])
@pytest.mark.parametrize("name", CASES)
def test_model_equals_its_reference(name: str, dtype: torch.dtype, size: int, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    result = run_case(write(name, tmp_path, dtype, size, seed=7 + size), tables()[name])
    assert result.dtype == str(dtype).removeprefix("torch.")
    assert len(result.outputs) >= 2
    assert len(result.grads) >= 10
    assert result.passed, f"{result.outputs} {sorted(result.grads.items(), key=lambda e: -e[1])[:5]}"
