"""Training on a mesh of processes gives the losses and weights of one process: a core of the grid (`tests.grid`)."""

from __future__ import annotations

import pytest

from tests.grid.__main__ import TOLERANCE, run
from tests.grid.run import Case

pytestmark = pytest.mark.dist
CORE = (
    Case("llama", "zero3", 2), Case("llama", "tp+sp", 2), Case("llama", "ulysses", 2), Case("llama", "ring", 2),
    Case("deepseek_v2", "ep", 2), Case("t5", "gather-kv", 2), Case("sd3", "tp", 2),
)  # fmt: skip


def test_a_mesh_trains_as_one_process_does() -> None:
    found = run(CORE, tell=False)
    limits = {str(c): TOLERANCE[c.dtype] for c in CORE}
    assert set(found) == set(limits)
    assert {n: e for n, e in found.items() if not isinstance(e, float) or e > limits[n]} == {}
