"""Training on a mesh of processes gives the losses and weights of one process: a core of the grid (`tests.grid`)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.grid.__main__ import TOLERANCE, run
from tests.grid.run import Case

pytestmark = pytest.mark.dist
CORE = (
    Case("llama", "zero3", 2), Case("llama", "tp+sp", 2), Case("llama", "ulysses", 2), Case("llama", "ring", 2),
    Case("deepseek_v2", "ep", 2), Case("t5", "gather-kv", 2), Case("sd3", "tp", 2),
)  # fmt: skip
OPTIMIZERS = (
    *(Case("llama", plan, 2, optimizer="muon") for plan in ("zero1", "zero2", "zero3", "tp")),
    Case("llama_deep", "1f1b", 2, optimizer="muon"), Case("deepseek_v2", "ep", 2, optimizer="muon"),
    Case("llama", "zero3", 2, optimizer="lion"), Case("llama", "tp", 2, optimizer="sgd"),
)  # fmt: skip


@pytest.mark.parametrize("cases", [CORE, OPTIMIZERS], ids=["adamw", "others"])
def test_a_mesh_trains_as_one_process_does(cases: Sequence[Case]) -> None:
    found = run(cases, tell=False)
    limits = {str(c): TOLERANCE[c.dtype] for c in cases}
    assert set(found) == set(limits)
    assert {n: e for n, e in found.items() if not isinstance(e, float) or e > limits[n]} == {}
