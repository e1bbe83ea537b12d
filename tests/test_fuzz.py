"""A few hundred mutated specs at every test; `python -m tests.fuzz` checks thousands."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import Tally, check, fuzz, mutated


@pytest.mark.alone
def test_mutated_specs_are_diagnosed_soon_and_run_nothing() -> None:
    tally = fuzz(300, seed=1)
    assert tally.good, tally
    assert tally.codes[2] > 100, "most mutations break something"


def test_a_mutation_is_a_function_of_its_seed() -> None:
    assert mutated(random.Random("0/7")) == mutated(random.Random("0/7"))


def test_a_traceback_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(_: object) -> int:
        raise KeyError("x")

    monkeypatch.setattr("specc.runtime.cli.main", broken)
    tally = Tally()
    check(tmp_path / "s.yaml", "0/0", tally)
    assert not tally.good
