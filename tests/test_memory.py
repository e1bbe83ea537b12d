"""Memory predicted by walking the actions, against what torch allocates."""

from __future__ import annotations

import pytest
import torch

from tests.grid.memory import TOLERANCE, measure
from tests.grid.run import Case, artifact


@pytest.mark.parametrize("model", ["llama", "t5"])
def test_the_peak_of_one_process_is_that_of_the_allocator(model: str) -> None:
    (found,) = measure(Case(model, "alone", 1, torch.float32))
    assert found.error <= 0.01  # counters of the optimizer, norms of gradients


def test_peaks_of_ranks_that_keep_parts_are_near_those_of_the_allocator() -> None:
    for plan in ("dp", "ring"):
        for found in measure(Case("llama", plan, 2, torch.float32)):
            assert found.error <= TOLERANCE, plan


def test_a_rank_of_zero_3_needs_less_than_one_of_plain_data_parallelism() -> None:
    plain, parts = (artifact(Case("llama", plan, 2, torch.float32)).peaks[0] for plan in ("dp", "zero3"))
    assert parts < plain
