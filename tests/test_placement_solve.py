"""The solver and the knapsack against all combinations, on small random problems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specc.compiler.placement.params import Way, knapsack
from specc.compiler.placement.solve import Factor, TooLarge, minimise


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[Factor]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    factors: list[Factor] = []
    for _ in range(draw(st.integers(0, 9))):
        scope = draw(st.lists(st.integers(0, len(sizes) - 1), max_size=3, unique=True))
        values = st.sampled_from([0.0, 1.0, 2.5, 7.0, np.inf])
        shape = [sizes[i] for i in scope]
        n = int(np.prod(shape))
        table = np.array(draw(st.lists(values, min_size=n, max_size=n))).reshape(shape)
        factors.append((tuple(scope), table))
    return sizes, factors


def total(factors: list[Factor], found: tuple[int, ...]) -> float:
    return sum(float(table[tuple(found[i] for i in scope)]) for scope, table in factors)


@given(problems())
@settings(max_examples=200, deadline=None)
def test_elimination_finds_the_least_of_all_combinations(problem: tuple[list[int], list[Factor]]) -> None:
    sizes, factors = problem
    cost, found = minimise(sizes, factors)
    best = min(total(factors, each) for each in itertools.product(*map(range, sizes)))
    assert cost == pytest.approx(best)
    assert total(factors, tuple(found)) == pytest.approx(best)
    assert minimise(sizes, factors) == (cost, found)


def test_a_clique_that_is_too_large_is_refused() -> None:
    n, size = 6, 40
    pairs = itertools.combinations(range(n), 2)
    with pytest.raises(TooLarge):
        minimise([size] * n, [(p, np.zeros((size, size))) for p in pairs])


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3), min_size=1, max_size=5),
    st.integers(0, 30),
)
@settings(max_examples=200, deadline=None)
def test_the_knapsack_finds_the_fastest_that_fits(groups: list[list[tuple[int, int]]], room: int) -> None:
    each = [[Way((), float(s), float(b)) for s, b in g] for g in groups]
    fitting = [c for c in itertools.product(*each) if sum(w.nbytes for w in c) <= room]
    found = knapsack(each, room)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert sum(w.nbytes for w in found) <= room
    assert sum(w.seconds for w in found) == min(sum(w.seconds for w in c) for c in fitting)
