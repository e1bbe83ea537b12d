"""Ring attention: equal work on all ranks, and what a rank's pairs of halves are."""

from __future__ import annotations

import pytest
import torch

from specc.compiler.lower.ring import Seen
from specc.compiler.lower.spread import unzigzag
from specc.runtime.groups import zigzag_order


def visible(ranks: int, tokens: int, halves: int, rank: int) -> tuple[int, int]:
    """Score entries that a rank computes in all turns, and how many of these a query sees."""
    seen = Seen(ranks, halves, tokens // ranks, torch.tensor([rank]), causal=True)
    computed = counted = 0
    for turn in range(ranks):
        for pair in seen.pairs(turn):
            mask = pair.mask()
            computed += seen.chunk**2
            counted += seen.chunk**2 if mask is None else int(mask.sum())
    return computed, counted


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_zigzag_ranks_work_alike(ranks: int) -> None:
    tokens = 64 * ranks
    work = [visible(ranks, tokens, 2, r) for r in range(ranks)]
    seen = [s for _, s in work]
    assert sum(seen) == tokens * (tokens + 1) // 2  # every visible pair once
    assert max(seen) <= 1.02 * min(seen)
    assert len({c for c, _ in work}) == 1
    assert work[0][0] <= 1.2 * (ranks + 1) / ranks * sum(seen) / ranks  # little is computed in vain


def test_ranks_with_tokens_in_order_do_not() -> None:
    seen = [visible(4, 256, 1, r)[1] for r in range(4)]
    assert max(seen) > 6 * min(seen)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_zigzag_order_is_what_graphs_undo(ranks: int) -> None:
    n = 10 * ranks * 2
    assert torch.equal(unzigzag(torch.arange(n), n, ranks), zigzag_order(n, ranks))
