"""Sharing calls out among stages: the heaviest is as light as in any way, by trying all of them."""

from __future__ import annotations

import itertools
import random

from specc.compiler.schedule.split import split


def heaviest(costs: list[float], begins: list[int]) -> float:
    return max(sum(costs[a:b]) for a, b in zip(begins, [*begins[1:], len(costs)], strict=True))


def test_no_other_way_is_lighter() -> None:
    rng = random.Random(0)
    for _ in range(300):
        costs = [rng.choice([0.0, 1.0, rng.uniform(0.0, 5.0)]) for _ in range(rng.randint(1, 9))]
        n = rng.randint(1, len(costs))
        every = ([0, *cut] for cut in itertools.combinations(range(1, len(costs)), n - 1))
        found = split(costs, n)
        assert found[0] == 0
        assert len(found) == n
        assert found == sorted(set(found))
        assert heaviest(costs, found) == min(heaviest(costs, way) for way in every)


def test_embedding_and_head_take_layers_from_their_stages() -> None:
    assert split([2.0, *[1.0] * 8, 3.0], 4) == [0, 2, 5, 8]
