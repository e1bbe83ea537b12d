"""Share out a line of costs among stages, so that the heaviest stage is as light as can be."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def split(costs: Sequence[float], n: int) -> list[int]:
    """The first index of each of `n` stages that are runs of the costs, none of them empty; exact.

    best[i] is the least cost of the heaviest of k stages that share the first i costs. The last stage is costs t to i:
    best[t] grows with t and the stage gets lighter, so the best t is where they cross."""
    assert 0 < n <= len(costs)
    sums = [0.0, *accumulate(costs)]
    best, cuts = list(sums), list[list[int]]()
    for k in range(1, n):
        row, cut = [0.0] * len(sums), [0] * len(sums)
        for i in range(k + 1, len(sums)):
            row[i], cut[i] = _cross(best, sums, k, i)
        best = row
        cuts.append(cut)
    begins = [len(costs)]
    for cut in reversed(cuts):
        begins.append(cut[begins[-1]])
    return [0, *reversed(begins[1:])]


def _cross(best: Sequence[float], sums: Sequence[float], k: int, i: int) -> tuple[float, int]:
    """The best place from k to i - 1 to begin the last stage of the first i costs."""
    at = bisect_left(range(k, i), True, key=lambda t: best[t] >= sums[i] - sums[t]) + k
    return min((max(best[t], sums[i] - sums[t]), t) for t in (at - 1, at) if k <= t < i)
